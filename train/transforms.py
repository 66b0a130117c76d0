"""Image operations of the input pipeline: Pillow in, uint8 arrays out."""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

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


# Not Encapsulated PostScript, which Pillow hands to an interpreter of programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000")


def decode(data: bytes, channels: int) -> Image.Image:
    """Decode an encoded image, all of it, into gray (1 channel) or RGB (3)."""
    return with_channels(Image.open(io.BytesIO(data), formats=_FORMATS), channels)


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


def square(image: Image.Image, side: int) -> Image.Image:
    """Cut the middle square and resize it, bicubic, to `side` pixels; no-op at that size."""
    if image.size == (side, side):
        return image
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def pad_to(pixels: Pixels, side: int) -> UInt8[np.ndarray, "{side} {side} C"]:
    """Add black borders up to `side` pixels; an odd one goes below and right."""
    height, width = side - pixels.shape[0], side - pixels.shape[1]
    borders = ((height // 2, height - height // 2), (width // 2, width - width // 2), (0, 0))
    return np.pad(pixels, borders)


def random_shift(pixels: Pixels, most: int, rng: np.random.Generator) -> Pixels:
    """Move by up to `most` pixels along each axis; black comes in at the borders.

    Args:
      pixels: The image.
      most: Largest move in pixels; 0 returns the image.
      rng: Source of the two moves, each uniform on [-most, most].
    """
    down, right = rng.integers(0, 2 * most + 1, size=2)
    padded = np.pad(pixels, ((most, most), (most, most), (0, 0)))
    return padded[down : down + pixels.shape[0], right : right + pixels.shape[1]]


EvalTransform = Callable[[Image.Image, int], Pixels]
TrainTransform = Callable[[Image.Image, int, np.random.Generator], Pixels]
