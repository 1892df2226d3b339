"""The README is true: its Python runs, its links and commands exist."""

import re
import shutil
from pathlib import Path

import pytest

from spanbert_fast.cli import COMMANDS
from spanbert_fast.commands.pretrain import parser
from spanbert_fast.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_python_runs(trained_model, tmp_path, monkeypatch, capsys):
    """All blocks in their order, in one namespace, beside a checkpoint in runs/first/model."""
    shutil.copytree(trained_model, tmp_path / "runs/first/model")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) >= 5 + 3 + 1 + 1


def test_its_commands_and_options_exist():
    used = re.findall(r"spanbert-fast ([a-z-]+)", README)
    assert set(used) == set(COMMANDS)
    known = parser().format_help()
    lines = re.findall(r"^    spanbert-fast pretrain.*?(?<!\\)$", README, flags=re.M | re.S)
    assert lines
    for option in re.findall(r"--[a-z-]+", " ".join(lines)):
        assert option in known, option
    for recipe in RECIPES:
        assert recipe in README


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_its_links_lead_somewhere(link):
    assert (ROOT / link).exists()
