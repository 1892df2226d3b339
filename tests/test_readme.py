"""The README is short, its Python runs, and its links, commands and figures exist."""

import json
import re
import shutil
from pathlib import Path

import pytest

from spanbert_fast.cli import COMMANDS
from spanbert_fast.commands.pretrain import parser
from spanbert_fast.training.pretraining.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_python_runs(trained_model, tmp_path, monkeypatch, capsys):
    """All blocks run in order, in one namespace, beside a checkpoint in runs/first/model."""
    shutil.copytree(trained_model, tmp_path / "runs/first/model")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    # it prints losses, fillings and an answer
    assert len(capsys.readouterr().out.splitlines()) >= 1 + 3 + 1


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


def test_it_is_a_screen_or_two_and_begins_with_what_it_does():
    lines = README.splitlines()
    assert len(lines) <= 160
    first_block = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    assert "spanbert_fast.accelerate(" in "\n".join(first_block.splitlines()[:10])
    assert README.index("![") < README.index("## ")
    for command in ("make pretrain", "make test"):
        assert f"\n    {command} " in README


def test_its_figures_are_in_the_result_files():
    """The table's ratios and rates are those of the machine's result files."""
    known = set()
    folder = ROOT / "benchmarks/results/amd-epyc-2-cores-avx512-bf16"
    for name in ("training", "inference", "finetuning"):
        for result in json.loads((folder / f"{name}.json").read_text())["results"]:
            ratios = [ratio["median"] for ratio in result.get("speedups", {}).values()]
            ratios += [result["speed_up"]] if "speed_up" in result else []
            known |= {f"{ratio:.{digits}f}" for ratio in ratios for digits in (1, 2)}
            providers = result.get("providers", {}).values()
            rates = [
                found["tokens_per_second"] for found in providers if "tokens_per_second" in found
            ]
            known |= {f"{rate:,.0f}" for rate in rates}
    rows = [line for line in README.splitlines() if line.startswith("|") and "AMD EPYC" in line]
    assert len(rows) >= 5
    for row in rows:
        _, _, ours, peers, _ = row.split("|")[:5]
        figures = re.findall(r"[\d,]+(?= tokens/s)", ours)
        figures += re.findall(r"\d+\.\d+(?= x| to )", peers)
        assert figures
        assert known.issuperset(figures), row
