"""Google's emoji drawings from an npm package, 64x64 in colour, by category.

1906 drawings in 9 categories, of which a fifth is held out. Source: C. Henderson, "emoji-data"
(code MIT), with the images of Google's Noto Color Emoji (Apache-2.0).

Variants in other skin tones are left out: they are the same drawings, and would make three fifths
of all images people. Other near-duplicates (a man, a woman and a person at one work, hearts in ten
colours, clocks at every hour, all families) count as one object, and all drawings of an object are
on the same side of the split.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from natjax.train.errors import UserError
from natjax.train.tasks.classification.config import ImagesConfig
from natjax.train.tasks.classification.datasets.registry import LabelledImages

_SIDE = 64
_HELD_OUT = 0.2
_HOW_TO_GET = (
    "run `npm pack emoji-datasource-google@16.0.0`, unpack the file with tar, and pass"
    " --data.dir package"
)
# Words and code points that tell variants of one drawing apart.
_VARIANT_WORD = re.compile(
    "MAN|MEN|WOMAN|WOMEN|PERSON|PEOPLE|MALE|FEMALE|BOY|GIRL|ADULT|OLDER|FATHER|MOTHER"
    "|RED|ORANGE|YELLOW|GREEN|BLUE|PURPLE|BROWN|BLACK|WHITE|GREY|GRAY|PINK|LIGHT|DARK"
    "|LARGE|SMALL|MEDIUM|HEAVY|FACING|RIGHT|OCLOCK"
    "|ONE|TWO|THREE|FOUR|FIVE|SIX|SEVEN|EIGHT|NINE|TEN|ELEVEN|TWELVE|THIRTY"
)
_VARIANT_CODE = re.compile("1F468|1F469|1F9D1|200D|FE0F|2640|2642|27A1")


# Unregistered: TFDS names are global, and others may have a data set of this name.
class Emoji(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder over the unpacked npm package."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012

    def __init__(self, *, original: Path | None, **options: Any):
        """Remember the folder of the package; None is enough to read a prepared set."""
        self._original = original
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Emoji drawings on white, 64x64, by category.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_SIDE, _SIDE, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(SPEC.class_names)),
                    "name": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = _folder(self._original)
        return {
            split: self._generate_examples(folder, entries)
            for split, entries in split_entries(read_entries(folder)).items()
        }

    def _generate_examples(
        self, folder: Path, entries: Iterable[dict[str, str]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for entry in entries:
            yield (
                entry["image"],
                {
                    "image": _on_white(folder / "img" / "google" / "64" / entry["image"]),
                    "label": entry["category"],
                    "name": entry["name"],
                },
            )


def read_entries(folder: Path) -> list[dict[str, str]]:
    """Read name, code, category and file of every drawing, in the package's order.

    Raises:
      UserError: the list of the package is missing or not as expected.
    """
    listing = folder / "emoji.json"
    try:
        entries = [
            {key: entry[key] for key in ("name", "unified", "category", "subcategory", "image")}
            for entry in json.loads(listing.read_text())
            if entry["has_img_google"] and entry["category"] in SPEC.class_names
        ]
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no emoji.json: {_HOW_TO_GET}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{listing} is not the list of emoji-datasource-google: {error}") from error
    for entry in entries:
        if not re.fullmatch(r"[0-9a-f-]+\.png", str(entry["image"])):
            raise UserError(f"{listing} must name images like 1f600.png, got {entry['image']!r}")
    return entries


def split_entries(entries: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Hold out a fifth of each category, object by object, by a fixed permutation.

    Args:
      entries: As `read_entries` returns them.
    """
    # The legacy generator's stream is frozen for ever, so the held-out drawings are too.
    random = np.random.RandomState(0)
    splits: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for category in SPEC.class_names:
        objects = group([entry for entry in entries if entry["category"] == category])
        wanted = _HELD_OUT * sum(map(len, objects))
        held_out = 0
        for index in random.permutation(len(objects)).tolist():
            fits = held_out + len(objects[index]) <= wanted
            held_out += len(objects[index]) if fits else 0
            splits["test" if fits else "train"] += objects[index]
    return splits


def group(entries: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """Put the drawings of one object together, in the order of each one's first drawing.

    Drawings belong together whose names, or whose code points, are the same without what tells
    variants apart; and all families.

    Args:
      entries: Drawings of one category.
    """
    objects: list[list[dict[str, str]]] = []
    place: dict[str, int] = {}
    for entry in entries:
        keys = _object_keys(entry)
        found = sorted({place[key] for key in keys if key in place})
        home = found[0] if found else len(objects)
        if not found:
            objects.append([])
        for other in found[1:]:
            objects[home] += objects[other]
            objects[other] = []
            place = {key: home if at == other else at for key, at in place.items()}
        objects[home].append(entry)
        place |= dict.fromkeys(keys, home)
    return [members for members in objects if members]


def _object_keys(entry: dict[str, str]) -> tuple[str, str]:
    if entry["subcategory"] == "family":
        return "family", "family"
    words = re.findall(r"[A-Z0-9]+", entry["name"].upper())
    name = " ".join(word for word in words if not _VARIANT_WORD.fullmatch(word))
    codes = entry["unified"].upper().split("-")
    code = "-".join(part for part in codes if not _VARIANT_CODE.fullmatch(part))
    return f"name {name}", f"code {code}"


def _on_white(path: Path) -> bytes:
    """The drawing on white, since black parts would be lost on black, as the bytes of a PNG."""
    with Image.open(path, formats=["PNG"]) as image:
        drawing = image.convert("RGBA")
    white = Image.new("RGBA", drawing.size, (255, 255, 255, 255))
    out = io.BytesIO()
    Image.alpha_composite(white, drawing).convert("RGB").save(out, "PNG")
    return out.getvalue()


def _folder(original: Path | None) -> Path:
    if original is None:
        raise UserError(f"emoji needs its original files: {_HOW_TO_GET}")
    return original.expanduser()


def _check_original(original: Path | None) -> None:
    folder = _folder(original)
    for entry in read_entries(folder):
        if not (folder / "img" / "google" / "64" / entry["image"]).is_file():
            raise UserError(f"{folder} has no img/google/64/{entry['image']}: {_HOW_TO_GET}")


SPEC = LabelledImages(
    name="emoji",
    channels=3,
    class_names=(
        "Smileys & Emotion",
        "People & Body",
        "Animals & Nature",
        "Food & Drink",
        "Travel & Places",
        "Activities",
        "Objects",
        "Symbols",
        "Flags",
    ),
    mean=(0.821, 0.769, 0.710),
    std=(0.288, 0.288, 0.353),
    train_split="train",
    test_split="test",
    builder=lambda prepared, original: Emoji(
        data_dir=prepared, file_format="array_record", original=original
    ),
    check_original=_check_original,
)


def get_spec(_: ImagesConfig) -> LabelledImages:
    """Return the data set."""
    return SPEC
