"""Docstrings as the source writes them, for Sphinx: what is indented is code."""

import re

from sphinx.application import Sphinx

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Shapes|Yields):$")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def with_code_blocks(lines: list[str]) -> list[str]:
    """The lines with reStructuredText's marks around blocks that an empty line and deeper
    indentation set off; blocks of `>>>` are moved to the left, where Sphinx knows them."""
    out: list[str] = []
    code, shift = None, 0  # indentation of the block that is open, and what is taken from it
    for i, line in enumerate(lines):
        if code is not None and line.strip() and _indent(line) < code:
            code = None
        starts_block = code is None and i > 1 and line.strip() and not lines[i - 1].strip()
        if starts_block:
            before = next((text for text in reversed(lines[: i - 1]) if text.strip()), "")
            is_text = not _SECTION.match(before.strip()) and not before.lstrip().startswith("- ")
            if is_text and _indent(line) > _indent(before):
                code = _indent(line)
                is_session = line.lstrip().startswith(">>>")
                shift = code - _indent(before) if is_session else 0
                if not is_session:
                    out[-1:] = ["", " " * _indent(before) + "::", ""]
        out.append(line[shift:] if code is not None and line.strip() else line)
    return out


def _process(app: Sphinx, what: str, name: str, obj, options, lines: list[str]) -> None:
    lines[:] = with_code_blocks(lines)


def setup(app: Sphinx) -> dict:
    """Before napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True}
