"""English text that comes with CPython: the language reference and the docstrings of the standard
library. It is read from the files of the running Python, so it differs between versions."""

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

_SKIPPED_FOLDERS = frozenset(
    ("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__")
)
# A paragraph is English, not code or a table, when nearly all of it is letters and spaces.
_MIN_PROSE_SHARE = 0.85
_MIN_WORDS = 4


def embedded_documents() -> list[str]:
    """The embedded corpus, about 1.4 MB, with one document per help topic and per module.

    Returns:
        Documents in a fixed order, with a paragraph per line. Repeated paragraphs, as in the codecs
        and the platform modules, appear once.
    """
    seen: set[str] = set()
    documents = []
    for text in (*_topics(), *_module_docstrings(Path(sysconfig.get_path("stdlib")))):
        paragraphs = [p for p in dict.fromkeys(_paragraphs(text)) if p not in seen]
        seen.update(paragraphs)
        if paragraphs:
            documents.append("\n".join(paragraphs))
    return documents


def _topics() -> Iterator[str]:
    from pydoc_data.topics import topics  # half a megabyte, which only this function needs

    for name in sorted(topics):
        yield topics[name]


def _module_docstrings(root: Path) -> Iterator[str]:
    """The docstrings of each module under `root`, joined. Modules are parsed, never imported."""
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    for path in sorted(paths, key=Path.as_posix):
        if _SKIPPED_FOLDERS.isdisjoint(path.parts[:-1]):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # old escapes in string literals
                    tree = ast.parse((root / path).read_bytes())
            except SyntaxError:  # a template, or written for another Python
                continue
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            nodes = (node for node in ast.walk(tree) if isinstance(node, documented))
            yield "\n\n".join(filter(None, map(ast.get_docstring, nodes)))


def _paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of prose in `text`, each with its wrapped lines joined."""
    for block in re.split(r"\n\s*\n", text):
        lines = (line.strip() for line in block.splitlines())
        # a line of one repeated sign underlines a title
        paragraph = " ".join(line for line in lines if len(set(line)) > 1)
        prose = sum(character.isalpha() or character == " " for character in paragraph)
        enough_words = paragraph.count(" ") + 1 >= _MIN_WORDS
        if enough_words and ">>>" not in paragraph and prose >= _MIN_PROSE_SHARE * len(paragraph):
            yield " ".join(paragraph.split())
