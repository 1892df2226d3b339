"""The files and targets that CONTRIBUTING.md and the workflow name exist."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("text", [TEXT, WORKFLOW], ids=["CONTRIBUTING.md", "ci.yml"])
def test_every_make_target_exists(text):
    used = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)\b", text)) - {"sure"}
    assert used and used <= TARGETS, used - TARGETS


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", TEXT))
def test_its_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_the_workflow_runs_what_decides():
    jobs = yaml.safe_load(WORKFLOW)["jobs"]
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert ".ci/run" in commands and "make lint" in commands
    assert any("tools/wheels.py" in command for command in commands)
    for command in commands:
        for path in re.findall(r"(?:tools|\.ci)/[\w.]+", command):
            assert (ROOT / path).exists(), path


def test_the_templates_are_forms_that_can_be_filled_in():
    forms = [*(ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys(), path
        assert all(field["attributes"]["label"] for field in form["body"]), path


def test_hooks_use_tools_that_are_installed_with_the_tests():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local", "hooks download nothing"
    for hook in repository["hooks"]:
        assert hook["entry"].startswith(".venv/bin/"), hook
