"""ImageNet in miniature: the official archives, and what TFDS' own builder makes of them.

Without TensorFlow: the builder opens archives and repairs odd images with it, so these two steps
are replaced; names, labels, features and files are TFDS' own.
"""

import io
import tarfile

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as official

TRAIN, VALIDATION, TEST = (f"ILSVRC2012_img_{x}.tar" for x in ("train", "val", "test"))
ARCHIVE = VALIDATION


def tar_bytes(files):
    """A tar of ``{name: bytes}``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def photo(seed, mode="RGB", kind="JPEG"):
    """An encoded photo of noise, of a size of its own."""
    rng = np.random.default_rng(seed)
    shape = (*rng.integers(20, 60, 2).tolist(), {"L": 1, "RGB": 3, "CMYK": 4}[mode])
    pixels = rng.integers(0, 256, shape, np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode).save(out, kind)
    return out.getvalue()


def train_photos():
    """Photos of four synsets by name, some gray, one a PNG by another name, one CMYK."""
    photos = {
        f"{synset}_{number}.JPEG": photo(100 * i + number, "L" if number == 3 else "RGB")
        for i, synset in enumerate(("n01440764", "n01739381", "n02105855", "n15075141"))
        for number in range(1, 9)
    }
    photos["n02105855_2933.JPEG"] = photo(1000, "RGB", "PNG")
    photos["n01739381_1309.JPEG"] = photo(1001, "CMYK")
    return photos


def write_train(folder, photos=None):
    """Write the archive of training photos, a tar of tars; not in sorted order."""
    by_synset = {}
    for name, data in (train_photos() if photos is None else photos).items():
        by_synset.setdefault(name.partition("_")[0], {})[name] = data
    folder.mkdir(parents=True, exist_ok=True)
    inner = {f"{synset}.tar": tar_bytes(files) for synset, files in reversed(by_synset.items())}
    (folder / TRAIN).write_bytes(tar_bytes(inner))


def write_archive(folder, encoded, kind="val"):
    """Write the archive of validation photos, ``encoded`` being the files, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"ILSVRC2012_{kind}_{number:08}.JPEG" for number in range(1, len(encoded) + 1))
    tar = tar_bytes(dict(zip(names, encoded, strict=True)))
    (folder / f"ILSVRC2012_img_{kind}.tar").write_bytes(tar)


def write_all(folder):
    """Write all three archives: 34, 10 and 3 photos."""
    write_train(folder)
    write_archive(folder, [photo(2000 + i) for i in range(10)])
    write_archive(folder, [photo(3000 + i) for i in range(3)], "test")


def official_labels(count):
    """Class numbers of the first validation photos."""
    at = tfds.core.tfds_path("datasets/imagenet2012")
    synsets = (at / "labels.txt").read_text().split()
    wanted = (at / "validation_labels.txt").read_text().split()[:count]
    return [synsets.index(synset) for synset in wanted]


def prepare(folder, archives, shards=None):
    """Make the data set from the archives there are, as ``imagenet2012`` in a folder."""
    opened = []

    with registered.skip_registration():

        class Builder(official.Builder):
            name = "imagenet2012"
            pkg_dir_path = epath.Path(official.__file__).parent

            def _split_generators(self, dl_manager):
                splits = {}
                for split, file in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
                    path = archives / file
                    if path.exists():
                        # An open file, since TFDS opens paths with TensorFlow.
                        opened.append(path.open("rb"))
                        files = tfds.download.iter_archive(
                            opened[-1], tfds.download.ExtractMethod.TAR
                        )
                        splits[split] = self._generate_examples(files, **_options(split, path))
                return splits

            def _fix_image(self, image_fname, image):
                if image_fname not in (*official.CMYK_IMAGES, *official.PNG_IMAGES):
                    return image
                out = io.BytesIO()
                Image.open(image).convert("RGB").save(out, "JPEG", quality=100)
                out.seek(0)
                return out

    tfds.disable_progress_bar()
    builder = Builder(data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=archives, num_shards=shards)
    builder.download_and_prepare(download_config=config)
    for file in opened:
        file.close()


def _options(split, path):
    if split != "validation":
        return {"labels_exist": False} if split == "test" else {}
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    with tarfile.open(path) as tar:
        names = sorted(tar.getnames())
    return {"validation_labels": dict(zip(names, labels.read_text().split(), strict=False))}
