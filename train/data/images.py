"""Image operations of the input pipeline: Pillow in, uint8 arrays out."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from natjax.images import FORMATS, open_image, without_far_ends
from natjax.train.errors import UserError

Pixels = UInt8[np.ndarray, "H W C"]


def encode_png(pixels: UInt8[np.ndarray, "H W"]) -> bytes:
    """Return a gray image as the bytes of a PNG file, which lose nothing."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def recode_jpeg(data: bytes) -> bytes:
    """Return an image of any format and mode as a JPEG file in RGB, with hardly a loss."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").save(out, "JPEG", quality=100)
    return out.getvalue()


def open_encoded(data: bytes) -> Image.Image:
    """Read the head of an encoded image.

    Args:
      data: Of one of `natjax.images.FORMATS`.

    Raises:
      OSError: it is of none of them.
    """
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise OSError(f"cannot identify image: it is none of {', '.join(FORMATS)}") from None


def decode(data: bytes, channels: int) -> Image.Image:
    """Decode an encoded image, all of it, into gray (1 channel) or RGB (3)."""
    return with_channels(open_encoded(data), channels)


def read_upright(path: Path, channels: int) -> Image.Image:
    """Read a user's image file, upright by its EXIF orientation; of an animation the first frame.

    Args:
      path: The file.
      channels: 1 (gray) or 3 (RGB).

    Raises:
      UserError: the file is no image, is damaged, or would unfold to an unreasonable size.
    """
    try:
        return with_channels(open_image(path), channels)
    except ValueError as error:
        raise UserError(str(error)) from error


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert to gray (1 channel) or RGB (3); transparency becomes black, 16 bits become 8."""
    if image.mode == ("L" if channels == 1 else "RGB") and "transparency" not in image.info:
        image.load()  # `convert` would copy it
        return image
    if image.mode.startswith("I"):
        # Pillow's own conversion would cut off above 255.
        image = Image.fromarray(np.rint(np.clip(image, 0, 65535) / 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert("L" if channels == 1 else "RGB")


def to_pixels(image: Image.Image) -> Pixels:
    """Return the image as an array with a channel axis."""
    pixels = np.asarray(image, np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def center_view(
    image: Image.Image, size: int, crop_pct: float = 1.0, interpolation: str = "bicubic"
) -> Image.Image:
    """Return what evaluation sees: the short side resized, and the middle square cut out.

    The same pixels as `natjax.preprocessing` at the published sizes.

    Args:
      image: Of any size.
      size: Side of the result, in pixels.
      crop_pct: Part of the resized short side that it holds.
      interpolation: How it is resized, ``"bicubic"`` or ``"bilinear"``.
    """
    from natjax.preprocessing import Preprocessing  # here, as it brings in JAX

    how = Preprocessing(size=size, crop_pct=crop_pct)
    image = without_far_ends(image)
    resized = how.resized(*image.size)
    if resized != image.size:
        image = image.resize(resized, Image.Resampling[interpolation.upper()])
    box = how.crop_box(*image.size)
    return image if box == (0, 0, *image.size) else image.crop(box)


def add_border(image: Image.Image, share: float) -> Image.Image:
    """Add black on every side, as much as `share` of the short side says."""
    pixels = round(share * min(image.size))
    return ImageOps.expand(image, pixels) if pixels else image


def random_shift(image: Image.Image, most: int, rng: np.random.Generator) -> Image.Image:
    """Move by up to `most` pixels along each axis; black comes in at the borders.

    Args:
      image: The image.
      most: Largest move in pixels; 0 returns the image.
      rng: Source of the two moves, each uniform on [-most, most].
    """
    left, top = (int(move) for move in rng.integers(-most, most + 1, size=2))
    return image.crop((left, top, left + image.width, top + image.height)) if most else image
