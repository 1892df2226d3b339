"""The documentation site: `make docs` builds it, with every warning an error and no network."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER / "_extensions"))

import spanbert_fast  # noqa: E402

project = "spanbert_fast"
version = release = spanbert_fast.__version__
html_title = f"spanbert_fast {version}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",  # this one and the next are in _extensions
    "command_line",
]
exclude_patterns = ["_extensions", "_build"]
html_theme = "furo"  # its fonts are the system's and its files are its own: nothing is fetched
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

default_role = "literal"  # `name` in a docstring is code, as it is in Markdown
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries = False
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Shapes", "params_style")]

# Pages that some versions have. The contents list those that are there, and end with every page
# that they do not name.
_OPTIONAL_PAGES = ("coreference", "gpu", "contributing", "threads", "same_bits")


def _with_the_pages_that_are_there(app, name: str, source: list[str]) -> None:
    if name != app.config.root_doc:
        return
    there = {page.stem for page in FOLDER.glob("*.md")} - {name}
    lines = source[0].split("\n")
    lines = [line for line in lines if line not in _OPTIONAL_PAGES or line in there]
    if rest := sorted(there - set(lines)):
        lines += ["```{toctree}", ":caption: More", ":maxdepth: 1", "", *rest, "```"]
    source[0] = "\n".join(lines)


def setup(app) -> None:
    """Connect what is above."""
    app.connect("source-read", _with_the_pages_that_are_there)
