"""One page about a run that has ended: scores, pictures, settings; it needs no other file."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from natjax.train.files import write_whole

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #24292f; max-width: 1100px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: 0.2rem 1.2rem 0.2rem 0; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } pre { overflow-x: auto; background: #f6f8fa; padding: 1rem; }
"""


def write_page(
    path: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    scores: Mapping[str, Mapping[str, str]],
    pictures: Mapping[str, Path],
    settings: Mapping[str, Any],
) -> None:
    """Write the page, with its pictures inside.

    Args:
      path: HTML file to write.
      title: Head line.
      facts: What the run is: a heading, and what it is about.
      scores: By the name of the weights, each score's name and value in words.
      pictures: Files by heading; those that are no PNG are named, not shown.
      settings: All settings of the run.
    """
    title = html.escape(title)
    parts = [
        f"<h1>{title}</h1>",
        _table([*facts]),
        "<h2>Scores</h2>",
        _score_table(scores),
        *(_picture(name, file) for name, file in pictures.items()),
        "<h2>Settings</h2>",
        f"<details><summary>all</summary><pre>{_json(settings)}</pre></details>",
    ]
    body = "\n".join(parts)
    write_whole(
        path,
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n{body}\n</html>\n",
    )


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(what)}</td></tr>" for name, what in rows
    )
    return f"<table>{''.join(cells)}</table>"


def _score_table(scores: Mapping[str, Mapping[str, str]]) -> str:
    names = list(dict.fromkeys(name for values in scores.values() for name in values))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *names))
    rows = [f"<tr>{head}</tr>"]
    for weights, values in scores.items():
        numbers = (f'<td class="number">{html.escape(values.get(name, ""))}</td>' for name in names)
        rows.append(f"<tr><th>{html.escape(weights)}</th>{''.join(numbers)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _picture(name: str, file: Path) -> str:
    heading = f"<h2>{html.escape(name[:1].upper() + name[1:])}</h2>"
    if file.suffix != ".png":
        return f"{heading}<p>{html.escape(file.name)}</p>"
    data = base64.b64encode(file.read_bytes()).decode()
    return f'{heading}<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'


def _json(settings: Mapping[str, Any]) -> str:
    return html.escape(json.dumps(settings, indent=2))
