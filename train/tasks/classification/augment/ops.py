"""The fifteen operations of RandAugment, in timm's "increasing" form.

Each is two pure functions: what a magnitude means, and what that does to an image. Nothing here is
random: signs and filters are drawn by the caller.
"""

import dataclasses
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

from natjax.train.tasks.classification.policy import MAX_MAGNITUDE

Fill = int | tuple[int, ...]
_SOLARIZE_BELOW = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation.

    Attributes:
      strength: ``magnitude in [0, 10] -> strength``, without its sign.
      signed: Whether the strength is negated half of the time.
      apply: ``(image, strength, resampling, fill) -> image`` of the same size and mode.
    """

    strength: Callable[[float], float]
    signed: bool = False
    apply: Callable[[Image.Image, float, Image.Resampling, Fill], Image.Image]


def _always(strength: float) -> Callable[[float], float]:
    return lambda _: strength


def _up_to(most: float) -> Callable[[float], float]:
    return lambda magnitude: magnitude / MAX_MAGNITUDE * most


def _whole_up_to(most: int) -> Callable[[float], float]:
    return lambda magnitude: float(int(magnitude / MAX_MAGNITUDE * most))


def _whole_down_from(most: int) -> Callable[[float], float]:
    return lambda magnitude: float(most - int(magnitude / MAX_MAGNITUDE * most))


def _affine(
    coefficients: Callable[[Image.Image, float], tuple[float, ...]],
) -> Callable[[Image.Image, float, Image.Resampling, Fill], Image.Image]:
    # The output pixel (x, y) is read at (a x + b y + c, d x + e y + f).
    def apply(
        image: Image.Image, strength: float, resampling: Image.Resampling, fill: Fill
    ) -> Image.Image:
        matrix = coefficients(image, strength)
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, resample=resampling, fillcolor=fill
        )

    return apply


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    # At the signed strength s the factor is 1 + s, and never under 0.1.
    return Operation(
        strength=_up_to(0.9),
        signed=True,
        apply=lambda image, strength, *_: kind(image).enhance(max(0.1, 1 + strength)),
    )


def _point(image: Image.Image, table: list[int]) -> Image.Image:
    return image.point(table * len(image.getbands()))


def _solarize_add(image: Image.Image, add: float, *_: object) -> Image.Image:
    return _point(image, [min(255, i + int(add)) if i < _SOLARIZE_BELOW else i for i in range(256)])


def _posterize(image: Image.Image, bits: float, *_: object) -> Image.Image:
    # Not Pillow's own, which refuses 0 bits; timm gets there at full magnitude: a black image.
    kept = 256 - 2 ** (8 - int(bits))
    return _point(image, [i & kept for i in range(256)])


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(
        strength=_always(0.0), apply=lambda image, *_: ImageOps.autocontrast(image)
    ),
    "Equalize": Operation(strength=_always(0.0), apply=lambda image, *_: ImageOps.equalize(image)),
    "Invert": Operation(strength=_always(0.0), apply=lambda image, *_: ImageOps.invert(image)),
    "Rotate": Operation(
        strength=_up_to(30.0),
        signed=True,
        apply=lambda image, degrees, resampling, fill: image.rotate(
            degrees, resample=resampling, fillcolor=fill
        ),
    ),
    "PosterizeIncreasing": Operation(
        strength=_whole_down_from(4),
        apply=_posterize,
    ),
    "SolarizeIncreasing": Operation(
        strength=_whole_down_from(256),
        apply=lambda image, threshold, *_: ImageOps.solarize(image, int(threshold)),
    ),
    "SolarizeAdd": Operation(strength=_whole_up_to(110), apply=_solarize_add),
    "ColorIncreasing": _enhance(ImageEnhance.Color),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
    "ShearX": Operation(
        strength=_up_to(0.3), signed=True, apply=_affine(lambda _, s: (1, s, 0, 0, 1, 0))
    ),
    "ShearY": Operation(
        strength=_up_to(0.3), signed=True, apply=_affine(lambda _, s: (1, 0, 0, s, 1, 0))
    ),
    "TranslateXRel": Operation(
        strength=_up_to(0.45),
        signed=True,
        apply=_affine(lambda image, s: (1, 0, s * image.width, 0, 1, 0)),
    ),
    "TranslateYRel": Operation(
        strength=_up_to(0.45),
        signed=True,
        apply=_affine(lambda image, s: (1, 0, 0, 0, 1, s * image.height)),
    ),
}
