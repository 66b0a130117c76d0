import gzip
import struct

import numpy as np
import pytest

from natjax.train.data.idx import read_idx
from natjax.train.errors import UserError


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


MALFORMED = {
    "empty": (b"", "must begin with 00 00 08 03 .* got nothing"),
    "png": (b"\x89PNG....", "got 89 50 4e 47"),
    "two axes": (idx(IMAGES[0]), r"got 00 00 08 02"),
    "floats": (bytes((0, 0, 13, 3)), "got 00 00 0d 03"),
    "half a header": (idx(IMAGES)[:9], "header of 16 bytes, got 9"),
    "too short": (idx(IMAGES)[:-1], r"must have 24 bytes of data for shape \(2, 3, 4\), got 23"),
    "too long": (idx(IMAGES) + b"x", "got 25"),
    "huge": (bytes((0, 0, 8, 3)) + b"\xff" * 12, "must have .* got 0"),
    "gzip cut": (gzip.compress(idx(IMAGES))[:-9], "is damaged"),
    "gzip zeroed": (gzip.compress(idx(IMAGES))[:12] + bytes(10), "is damaged"),
    "not gzip": (b"\x1f\x8bjunk", "is damaged"),
}


# Ids are names: gzip's bytes hold the time, and the workers must agree on every id.
@pytest.mark.parametrize(("content", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name} .*{message}"):
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
