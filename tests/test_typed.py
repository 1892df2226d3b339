"""tools/typed.py: its page shows what real commands have printed."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/typed.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def typed():
    """Import the tool as a module."""
    spec = importlib.util.spec_from_file_location("typed", ROOT / "tools/typed.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


@pytest.fixture(scope="module")
def folder(typed, trained_model, tmp_path_factory):
    made = tmp_path_factory.mktemp("typed")
    typed.write_files(made, trained_model)
    return made


def test_a_command_is_judged_by_its_exit_code_and_its_words(typed, folder):
    wrong = typed.Case("spanbert-fast fill x --model nobody/nothing", "HF_HUB_OFFLINE is set", 2)
    good, code, line, seconds = typed.run(wrong, folder)
    assert (good, code) == (True, 2) and seconds > 0
    assert re.search("no directory .*nobody/nothing", line)
    shown = typed.row(wrong, code, line, seconds, folder)
    assert str(folder) not in shown and str(ROOT) not in shown
    assert not typed.run(wrong._replace(code=0), folder)[0]
    assert not typed.run(wrong._replace(says="all is well"), folder)[0]


def test_alone_means_without_this_package(typed, folder):
    alone = typed.Case("hf: print(AutoModel.__name__)", "AutoModel")
    assert typed.run(alone, folder)[:2] == (True, 0)
    ours = typed.Case("hf: import spanbert_fast", "AssertionError", 1)
    assert typed.run(ours, folder)[:2] == (True, 1)


def test_a_section_takes_its_place_on_the_page(typed, tmp_path):
    first, second, *_ = typed.SECTIONS
    path = tmp_path / "page.md"
    typed.write(path, second, [f"## {second}", "", "old"])
    typed.write(path, first, [f"## {first}", "", "one"])
    typed.write(path, second, [f"## {second}", "", "two"])
    text = path.read_text()
    assert text.startswith("# What you type") and "old" not in text
    assert text.index("one") < text.index(f"## {second}") < text.index("two")


def test_the_page_has_every_case_and_no_path_of_a_machine(typed):
    rows = [line for line in PAGE.splitlines() if line.startswith(("| ``", "| *"))]
    cases = [case for cases in typed.SECTIONS.values() for case in cases]
    assert len(rows) == len(cases)
    for line, case in zip(rows, cases, strict=True):
        shown = case.typed.removeprefix("py: ").removeprefix("hf: ").replace("|", "\\|")
        assert f"`` {shown} `` | {case.code} | " in line
    assert not re.search(r"/(tmp|root|home|work|usr)/", PAGE)


def test_the_tool_runs(trained_model):
    command = [sys.executable, ROOT / "tools/typed.py", "--model", trained_model]
    done = subprocess.run(
        [*command, "--sections", "Start", "--only=--help"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage: spanbert-fast") == 3
