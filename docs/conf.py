"""How Sphinx builds the site: ``make docs``."""

import pathlib
import shutil

from sphinx.application import Sphinx

from natjax import __version__

project = "natjax"
author = "the natjax contributors"
copyright = author
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

# Docstrings are Google's style; names in single backticks are links where there is something to
# link to.
default_role = "py:obj"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # shapes such as "*B N" are no reStructuredText
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_maximum_signature_line_length = 80  # longer ones have a line for each argument

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# Notebooks have no output in the repository: the site's are what this build computed.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

html_theme = "sphinx_book_theme"
html_title = f"natjax {release}"
html_theme_options = {
    "use_download_button": False,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search is in the sidebar already
}


# Measurements stay where their programs write them; the site has a copy, as one of its folders.
RESULTS = pathlib.Path(__file__).parents[1] / "benchmarks" / "results"
shutil.copytree(
    RESULTS,
    pathlib.Path(__file__).parent / "results",
    dirs_exist_ok=True,
)


def _links_to_results(app: Sphinx, page: str, source: list[str]) -> None:
    """Lead links between docs/ and benchmarks/results/ to the copies."""
    del app
    up = "../" * page.count("/")
    source[0] = source[0].replace(f"](../{up}benchmarks/results/", f"]({up}results/")
    if page.startswith("results/"):
        source[0] = source[0].replace("](../../docs/", "](../")


def setup(app: Sphinx) -> None:
    """Register what this file adds; Sphinx calls it."""
    app.connect("source-read", _links_to_results)
