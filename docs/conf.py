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

# pages that some versions have: the contents list those that are there
_OPTIONAL_PAGES = ("coreference", "gpu", "contributing")


def _without_missing_pages(app, name: str, source: list[str]) -> None:
    missing = [page for page in _OPTIONAL_PAGES if not (FOLDER / f"{page}.md").exists()]
    if name == app.config.root_doc:
        source[0] = "\n".join(line for line in source[0].split("\n") if line not in missing)


def setup(app) -> None:
    """Connect what is above."""
    app.connect("source-read", _without_missing_pages)
