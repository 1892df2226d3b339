"""The documentation site builds without warnings or network, and the code on its pages runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spanbert_fast.cli import COMMANDS
from spanbert_fast.commands import finetune, predict, prepare, pretrain
from spanbert_fast.tasks import NAMES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PARSERS = {"pretrain": pretrain, "prepare": prepare, "finetune": finetune, "predict": predict}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Build the site; every warning is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, str(DOCS), str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_there_and_fetches_nothing(site):
    assert {page.stem for page in PAGES} == {page.stem for page in site.glob("*.html")} - {
        "genindex",
        "py-modindex",
        "search",
    }
    fetched = re.compile(r"""<(?:script|img|iframe)[^>]*src="(?:https?:)?//|<link[^>]*href="http""")
    for page in site.glob("*.html"):
        assert not fetched.search(page.read_text(encoding="utf-8")), page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//|@import", sheet.read_text()), sheet.name


def test_the_reference_has_every_command_option_and_field(site):
    text = (site / "cli.html").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"spanbert-fast {command}" in text
    for module in PARSERS.values():
        parser = finetune.task_parser("qa") if module is finetune else module.parser()
        for action in parser._actions:
            if module is finetune and action.container.title.startswith("options of "):
                continue
            for option in action.option_strings:
                if option not in ("-h", "--help"):
                    assert option in text, option
    for name in NAMES:
        assert (DOCS / f"{'coreference' if name == 'coref' else name}.md").exists(), name
        for action in finetune.task_parser(name)._actions:
            if action.dest != "help":
                assert all(option in text for option in action.option_strings), (name, action.dest)
    configuration = (site / "configuration.html").read_text(encoding="utf-8")
    for field in ("spanbert-large", "gradient_accumulation_steps", "max_line_bytes", "patience"):
        assert field in configuration


def test_the_drawings_are_what_the_script_draws():
    names: dict = {"__name__": "draw", "__file__": str(DOCS / "drawings/draw.py")}
    exec(compile((DOCS / "drawings/draw.py").read_text(), "draw.py", "exec"), names)
    drawn = {name: draw().svg() for name, draw in names["PICTURES"].items()}
    assert drawn == {p.stem: p.read_text() for p in (DOCS / "drawings").glob("*.svg")}


def blocks_of(page: Path, kind: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def needs_the_first_run_alone(page: Path) -> bool:
    """Whether code needs nothing but the first run. Code on a fine-tuned model runs in its task's
    tests."""
    code = "\n".join(blocks_of(page, "python"))
    return bool(code) and set(re.findall(r'"(runs/[^"]+)"', code)) <= {"runs/first/model"}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if needs_the_first_run_alone(page)], ids=lambda page: page.stem
)
def test_its_python_runs(page, trained_model, tmp_path, monkeypatch):
    """All blocks of a page run in order, beside a checkpoint in runs/first/model."""
    shutil.copytree(trained_model, tmp_path / "runs/first/model")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks_of(page, "python"):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_commands_and_options_exist(page):
    lines = re.sub(r"\\\n", " ", "\n".join(blocks_of(page, "console")))
    for line in lines.splitlines():
        found = re.search(r"(?:spanbert-fast|-m spanbert_fast) ([a-z-]+)(.*)", line)
        if not found:
            continue
        command, rest = found.groups()
        assert command in COMMANDS, line
        if command in PARSERS:
            task = next((name for name in NAMES if f" {name} " in rest), NAMES[0])
            known = PARSERS[command].parser().format_help()
            if command == "finetune":
                known += finetune.task_parser(task).format_help()
            for option in re.findall(r"(?<= )--[a-z-]+", rest):
                assert option in known, line
