"""A model card for converted weights: what they are, where from, and what is published."""

from __future__ import annotations

import datetime

import natjax
from natjax.registry import maker_of
from natjax.weights.published import PUBLISHED, Published
from natjax.weights.save import Conversion
from natjax.weights.untrusted import show

_LICENCE = (
    "The official project publishes its code and checkpoints under the MIT licence"
    " (https://github.com/SHI-Labs/Neighborhood-Attention-Transformer). Converting changes nothing"
    " about that. If the source was another one, its terms hold."
)
_PAPERS = """\
- A. Hassani, S. Walton, J. Li, S. Li, H. Shi. *Neighborhood Attention Transformer.* CVPR 2023.
- A. Hassani, H. Shi. *Dilated Neighborhood Attention Transformer.* 2022."""


def model_card(done: Conversion, source: str) -> str:
    """A card in Markdown, with the fields that Hugging Face's hub reads at its top.

    Accuracies are those that the official project publishes for weights of the model; nothing in a
    file says whether it is one of them, and nothing here measures them.

    Args:
      done: what `natjax.weights.convert_weights` returned.
      source: what it read, as the user wrote it.
    """
    name = done.model or "a model of its own config"
    sections = [
        "---\nlibrary_name: natjax\nlicense: mit\ntags:\n- neighborhood-attention\n- jax\n---",
        f"# {name}",
        f"{done.arrays} arrays with {done.naming} names, converted by natjax"
        f" {natjax.__version__} on {datetime.date.today().isoformat()}. Dtypes and bits are those"
        " of the source.",
        f"## Where they are from\n\nSource: {show(source, bare=True)}\n\nNames: {done.read.naming}"
        f" ({done.read.format})",
        f"## Licence\n\n{_LICENCE}",
        *_published(done.model),
        f"## Use\n\n{_use(done)}",
        f"## Papers\n\n{_PAPERS}",
    ]
    return "\n\n".join(sections) + "\n"


def _published(model: str | None) -> list[str]:
    """A table of what is published for the model, if anything is."""
    entries = [entry for entry in PUBLISHED if model is not None and entry.names(model)]
    if not entries:
        return []
    rows = "\n".join(_row(entry, model) for entry in entries)
    return [
        "## What is published for this model\n\nQuoted, not measured by natjax.\n\n"
        f"| weights | trained for | image | accuracy |\n|---|---|---|---|\n{rows}"
    ]


def _row(entry: Published, model: str | None) -> str:
    name = entry.names(model or entry.model)[0]
    return f"| `{name}` | {entry.task} | {entry.resolution} | {entry.accuracy} |"


def _use(done: Conversion) -> str:
    if done.model is None:
        return "```py\nnatjax.load_weights(model, path)\n```"
    maker = maker_of(done.model)
    return f'```py\nimport natjax\n\nmodel = natjax.{maker}("{done.model}", weights=path)\n```'
