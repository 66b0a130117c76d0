"""ImageNet in miniature: the official archive, and what TFDS' own builder makes of it.

Without TensorFlow: the builder opens archives and repairs odd images with it, so these two steps
are replaced; names, labels, features and files are TFDS' own.
"""

import io
import tarfile

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import registered
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as official

ARCHIVE = "ILSVRC2012_img_val.tar"


def write_archive(folder, encoded):
    """Write the archive of validation photos, ``encoded`` being the files, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / ARCHIVE, "w") as tar:
        for number, data in enumerate(encoded, start=1):
            info = tarfile.TarInfo(f"ILSVRC2012_val_{number:08}.JPEG")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def official_labels(count):
    """Class numbers of the first validation photos."""
    at = tfds.core.tfds_path("datasets/imagenet2012")
    synsets = (at / "labels.txt").read_text().split()
    wanted = (at / "validation_labels.txt").read_text().split()[:count]
    return [synsets.index(synset) for synset in wanted]


def prepare(folder, archives):
    """Make the data set from the archives, as ``imagenet2012`` in a folder."""
    with registered.skip_registration():

        class Builder(official.Builder):
            name = "imagenet2012"
            pkg_dir_path = epath.Path(official.__file__).parent

            def _split_generators(self, dl_manager):
                path = archives / ARCHIVE
                labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
                with tarfile.open(path) as tar:
                    names = sorted(tar.getnames())
                by_name = dict(zip(names, labels.read_text().split(), strict=False))
                # An open file, since TFDS opens paths with TensorFlow; it lasts as long as this.
                tar = self.archive = path.open("rb")
                files = tfds.download.iter_archive(tar, tfds.download.ExtractMethod.TAR)
                return {"validation": self._generate_examples(files, validation_labels=by_name)}

            def _fix_image(self, image_fname, image):
                return image

    tfds.disable_progress_bar()
    builder = Builder(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=archives))
    builder.archive.close()
