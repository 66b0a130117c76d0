import gzip
import struct

import numpy as np
import pytest

from natjax.train.errors import UserError
from natjax.train.idx import read_idx


def idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim))
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_reads_what_was_written(tmp_path, pack):
    path = tmp_path / "images"
    path.write_bytes(pack(idx(IMAGES)))
    np.testing.assert_array_equal(read_idx(path, 3), IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must begin with 00 00 08 03 .* got nothing"),
        (b"\x89PNG....", "got 89 50 4e 47"),
        (idx(IMAGES[0]), r"got 00 00 08 02"),
        (bytes((0, 0, 13, 3)), "got 00 00 0d 03"),
        (idx(IMAGES)[:9], "header of 16 bytes, got 9"),
        (idx(IMAGES)[:-1], r"must have 24 bytes of data for shape \(2, 3, 4\), got 23"),
        (idx(IMAGES) + b"x", "got 25"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "must have .* got 0"),
        (gzip.compress(idx(IMAGES))[:-9], "is damaged"),
        (gzip.compress(idx(IMAGES))[:12] + b"\0\0\0\0\0\0\0\0\0\0", "is damaged"),
        (b"\x1f\x8bjunk", "is damaged"),
    ],
)
@pytest.mark.parametrize("name", ["labels.gz"])
def test_malformed_files_are_refused_by_name(tmp_path, content, message, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} .*{message}"):
        read_idx(path, 3)


def test_a_bit_flipped_inside_gzip_is_noticed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
    data = bytearray(gzip.compress(idx(noise)))
    data[len(data) // 2] ^= 1
    path = tmp_path / "x.gz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged|must"):
        read_idx(path, 3)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_idx(tmp_path / "x", 1)
