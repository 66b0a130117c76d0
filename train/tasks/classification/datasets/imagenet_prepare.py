"""ImageNet from the official archives, as TFDS itself would write it: ``natjax data prepare``.

TFDS' own preparation needs TensorFlow, keeps everything twice on the disk, and begins anew when it
is interrupted. Here the order of the photos and the shards, which TFDS derives from hashes of their
names and from sizes, are known before anything is written. So shards are written one by one, each
under a temporary name until it is whole, and what is there is not written again.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int64
from tensorflow_datasets.core import example_serializer, file_adapters, hashing
from tensorflow_datasets.core.utils import shard_utils
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as official

from natjax.train import console
from natjax.train.data.file_cache import stamp
from natjax.train.data.images import recode_jpeg
from natjax.train.data.prepared import locked, open_version
from natjax.train.data.shard_progress import ShardProgress
from natjax.train.data.workers import die_with_parent
from natjax.train.errors import TrainingError, UserError
from natjax.train.files import write_whole
from natjax.train.tasks.classification.datasets.imagenet_tars import (
    ARCHIVES,
    Archive,
    Photos,
    index_archive,
    synsets,
)

NAME = "imagenet2012"
_VERSION = "5.1.0"
_ODD = frozenset(official.CMYK_IMAGES) | frozenset(official.PNG_IMAGES)
_SLACK = 1.005  # of ArrayRecord's own bytes around the records


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file to write.

    Attributes:
      path: The file.
      archive: Where its photos are.
      photos: Its photos, in its order.
      bytes: Length of all records.
    """

    path: Path
    archive: Path
    photos: Photos
    bytes: int


@dataclasses.dataclass(frozen=True)
class _Split:
    name: str
    archive: Path
    photos: Photos
    lengths: Int64[np.ndarray, " N"]
    order: Int64[np.ndarray, " N"]
    ends: tuple[int, ...]

    @property
    def counts(self) -> list[int]:
        """Photos in each shard."""
        return np.diff(self.ends, prepend=0).tolist()


def prepare(manual_dir: Path, root: Path, *, workers: int = 1, partial: bool = False) -> Path:
    """Write ImageNet, or what of it is still missing.

    Args:
      manual_dir: Folder of the official archives; that of the test photos may be missing.
      root: Folder to write ``imagenet2012`` into.
      workers: Processes that write shards.
      partial: Take archives that hold less or more than the official ones.

    Returns:
      The folder of the prepared data set.

    Raises:
      UserError: an archive is missing, damaged or not the official one, or the disk is too small.
    """
    console.quiet_libraries()
    root.mkdir(parents=True, exist_ok=True)
    done = root / NAME / _VERSION
    with locked(root / f".{NAME}.lock"):
        if done.exists():
            _accept_prepared(done, partial)
            return done
        archives = _find_archives(manual_dir)
        before = _stamps(archives)
        work = root / NAME / "preparing"
        work.mkdir(parents=True, exist_ok=True)
        photos = {name: _index(archive, path, work) for name, (archive, path) in archives.items()}
        if not partial:
            _check_counts(manual_dir, photos)
        splits = [_plan(name, archives[name][1], photos[name]) for name in photos]
        _keep_only_what_fits(work, splits)
        shards = [shard for split in splits for shard in _shards(split, work)]
        _write(shards, workers)
        if not np.array_equal(before, _stamps(archives)):
            raise UserError(f"{manual_dir} has changed meanwhile; run the same command again")
        _finish(work, done, splits)
    return done


def _accept_prepared(done: Path, partial: bool) -> None:
    splits = open_version(done).info.splits
    counts = {archive.split: archive.count for archive in ARCHIVES}
    short = [
        f"{name} has {splits[name].num_examples if name in splits else 0:,} of {count:,} photos"
        for name, count in counts.items()
        if (name in splits or name != "test")
        and (name not in splits or splits[name].num_examples != count)
    ]
    if short and not partial:
        raise UserError(
            f"{done} is prepared from a part of ImageNet ({'; '.join(short)}); remove that folder"
            " to prepare the whole, or pass --partial to leave it"
        )


def _find_archives(folder: Path) -> dict[str, tuple[Archive, Path]]:
    found = {
        archive.split: (archive, folder / archive.file)
        for archive in ARCHIVES
        if (folder / archive.file).is_file()
    }
    if not found:
        names = ", ".join(archive.file for archive in ARCHIVES)
        raise UserError(
            f"{folder} must hold the official archives of ImageNet ({names}), got none of them;"
            " https://image-net.org/download-images has them for those who register"
        )
    return found


def _stamps(archives: dict[str, tuple[Archive, Path]]) -> np.ndarray:
    return stamp(path for _, path in archives.values())


def _index(archive: Archive, path: Path, work: Path) -> Photos:
    with console.waiting(f"Looking through {path}"):
        return index_archive(archive, path, work / f"{archive.split}.index.npz")


def _check_counts(folder: Path, photos: dict[str, Photos]) -> None:
    wrong = []
    for archive in ARCHIVES:
        if archive.split not in photos:
            if archive.split != "test":
                wrong.append(f"{archive.file} is missing")
            continue
        labels = photos[archive.split].labels
        classes = len(np.unique(labels))
        if len(labels) != archive.count:
            wrong.append(f"{archive.file} has {len(labels):,} of {archive.count:,} photos")
        elif archive.split != "test" and classes != len(synsets()):
            wrong.append(f"{archive.file} has {classes} of {len(synsets())} classes")
    if wrong:
        raise UserError(
            f"{folder} must hold the whole of ImageNet: {'; '.join(wrong)}; get the official"
            " archives again, or pass --partial to prepare what is there"
        )


def _plan(split: str, archive: Path, photos: Photos) -> _Split:
    """Order and shards as `tfds.core.GeneratorBasedBuilder` has them."""
    lengths = record_lengths(photos, _recoded_sizes(archive, photos))
    hasher = hashing.Hasher(split)
    keys = [hasher.hash_key(name.decode()) for name in photos.names.tolist()]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    number = shard_utils.ShardConfig().get_number_shards(int(lengths.sum()), len(photos))
    ends = shard_utils.get_shard_boundaries(len(photos), number)
    return _Split(split, archive, photos, lengths, order, tuple(ends))


def record_lengths(photos: Photos, image_sizes: Int64[np.ndarray, " N"]) -> np.ndarray:
    """Length of each photo's record: a ``tf.Example`` in protobuf's encoding, not yet made.

    Args:
      photos: Names and labels.
      image_sizes: Bytes of the images, as they are written.
    """
    labels = np.where(photos.labels < 0, 10, _varint(photos.labels))  # minus one takes ten bytes
    values = {
        "image": image_sizes,
        "file_name": np.strings.str_len(photos.names),
        "label": labels,
    }
    # A field is a tag, its length, and its content: map entry, feature, list, value.
    entries = (
        _field(_field(np.int64(len(key))) + _field(_field(_field(x)))) for key, x in values.items()
    )
    return _field(sum(entries, start=np.zeros(len(photos), np.int64)))


def _field(content: Any) -> Any:
    return 1 + _varint(content) + content


def _varint(value: Any) -> Any:
    return 1 + sum((value >= 1 << bits).astype(np.int64) for bits in range(7, 63, 7))


def _recoded_sizes(archive: Path, photos: Photos) -> Int64[np.ndarray, " N"]:
    sizes = photos.sizes.copy()
    with archive.open("rb") as file:
        for i in np.flatnonzero(np.isin(photos.names, [name.encode() for name in _ODD])).tolist():
            sizes[i] = len(_image(archive, file.fileno(), photos, i))
    return sizes


def _image(archive: Path, descriptor: int, photos: Photos, index: int) -> bytes:
    """The bytes of a photo; those that are not JPEG in RGB or gray are made so, as TFDS does."""
    size, offset = int(photos.sizes[index]), int(photos.offsets[index])
    data = os.pread(descriptor, size, offset)
    name = photos.names[index].decode()
    if len(data) != size:
        raise UserError(f"{archive} has changed while it was read; run the same command again")
    if name not in _ODD:
        return data
    try:
        return recode_jpeg(data)
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise UserError(f"{archive} holds a damaged {name} ({error}); get it again") from error


def _keep_only_what_fits(work: Path, splits: list[_Split]) -> None:
    """Remove shards that another state of the archives has left, and files half written."""
    plan = {
        split.name: {"archive": stamp([split.archive]).tolist(), "shards": len(split.ends)}
        for split in splits
    }
    note = work / "plan.json"
    before = json.loads(note.read_text()) if note.exists() else {}
    for path in work.glob(f"{NAME}-*"):
        split = path.name.removeprefix(f"{NAME}-").partition(".")[0]
        if path.suffix == ".tmp" or before.get(split) != plan.get(split):
            path.unlink()
    write_whole(note, json.dumps(plan))


def _template(folder: Path, split: str) -> Any:
    return tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=NAME, split=split, filetype_suffix="array_record"
    )


def _shards(split: _Split, work: Path) -> Iterator[Shard]:
    template, number = _template(work, split.name), len(split.ends)
    for index, (begin, end) in enumerate(zip((0, *split.ends), split.ends, strict=False)):
        chosen = split.order[begin:end]
        photos = split.photos
        yield Shard(
            Path(template.sharded_filepath(shard_index=index, num_shards=number)),
            split.archive,
            Photos(
                photos.names[chosen],
                photos.offsets[chosen],
                photos.sizes[chosen],
                photos.labels[chosen],
            ),
            int(split.lengths[chosen].sum()),
        )


def _write(shards: list[Shard], workers: int) -> None:
    missing = [shard for shard in shards if not shard.path.exists()]
    if not missing:
        return
    _check_space(missing[0].path.parent, sum(shard.bytes for shard in missing))
    sizes = [[shard.bytes for shard in some] for some in (shards, missing)]
    with ShardProgress(f"Writing {NAME}", *sizes) as progress:
        if workers == 1:
            for shard in missing:
                write_shard(shard)
                progress.wrote(shard.bytes)
            return
        # Spawned, since threads of libraries do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=die_with_parent) as pool:
            _write_in(pool, missing, progress)


def _write_in(pool: Executor, missing: list[Shard], progress: ShardProgress) -> None:
    waiting = {pool.submit(write_shard, shard): shard for shard in missing}
    try:
        for future in as_completed(waiting):
            future.result()
            progress.wrote(waiting[future].bytes)
    except BrokenProcessPool as error:
        raise TrainingError(
            "a worker process was killed, perhaps for want of memory; run the same command again"
            " to continue, or with a smaller --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _check_space(folder: Path, records: int) -> None:
    needed, free = int(records * _SLACK), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} must have {needed / 1e9:.1f} GB free for what is still to be written, got"
            f" {free / 1e9:.1f} GB; choose another --prepared-dir"
        )


def write_shard(shard: Shard) -> None:
    """Write one file; it has its name when all of it is on the disk."""
    partial = shard.path.with_name(f"{shard.path.name}.{os.getpid()}.tmp")
    adapter = file_adapters.ArrayRecordFileAdapter
    try:
        with shard.archive.open("rb") as archive:
            adapter.write_examples(partial, _records(shard, archive.fileno()))
        _check_written(partial, adapter.num_examples(partial), shard)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, shard.path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _check_written(path: Path, count: int, shard: Shard) -> None:
    if count != len(shard.photos):
        raise TrainingError(f"{path} has {count} of {len(shard.photos)} records after writing")


def _records(shard: Shard, descriptor: int) -> Iterator[tuple[None, bytes]]:
    features, serializer = _serializer()
    photos, total = shard.photos, 0
    for index in range(len(photos)):
        example = {
            "file_name": photos.names[index].decode(),
            "image": _image(shard.archive, descriptor, photos, index),
            "label": int(photos.labels[index]),
        }
        # Deterministic, since the order of protobuf's maps is else another in each process.
        record = serializer.get_tf_example(features.encode_example(example)).SerializeToString(
            deterministic=True
        )
        total += len(record)
        yield None, record
    if total != shard.bytes:
        raise TrainingError(f"{shard.path} has {total} bytes of records, expected {shard.bytes}")


@functools.cache
def _serializer() -> tuple[Any, example_serializer.ExampleSerializer]:
    console.quiet_libraries()
    features = _builder(Path(os.devnull)).info.features
    return features, example_serializer.ExampleSerializer(features.get_serialized_info())


def _builder(root: Path) -> Any:
    return official.Builder(data_dir=root, version=_VERSION, file_format="array_record")


def _finish(work: Path, done: Path, splits: list[_Split]) -> None:
    """Describe the data set by TFDS' own means, and give the folder its name."""
    info = _builder(done.parent.parent).info
    info.set_splits(
        tfds.core.splits.SplitDict(
            [
                tfds.core.SplitInfo(
                    name=split.name,
                    shard_lengths=split.counts,
                    num_bytes=int(split.lengths.sum()),
                    filename_template=_template(done, split.name),
                )
                for split in splits
            ]
        )
    )
    info.download_size = 0
    info.write_to_directory(work)
    for leftover in (*work.glob("*.index.npz"), work / "plan.json"):
        leftover.unlink()
    os.replace(work, done)
