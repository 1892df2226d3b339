"""`spanbert-fast completion`: the shell offers the options that the parsers take."""

import importlib.util
import subprocess

import pytest

from spanbert_fast.cli import COMMANDS, main
from spanbert_fast.commands.completion import SHELLS, _tasks_of, whole_parser
from spanbert_fast.tasks import NAMES


def test_one_parser_has_every_command_and_task():
    commands = {parser.prog.split()[-1]: parser for parser in _tasks_of(whole_parser())}
    assert set(commands) == set(COMMANDS)
    tasks = {parser.prog.split()[-1]: parser for parser in _tasks_of(commands["finetune"])}
    assert set(tasks) == set(NAMES)
    assert "--weights-dtype" in tasks["ner"].format_help()
    assert "--tag-column" in tasks["ner"].format_help()
    assert "--tag-column" not in tasks["qa"].format_help()


def test_what_is_missing_is_one_line(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "shtab" else find(name, *a)
    )
    assert main(["completion", "bash"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "spanbert-fast completion: error: completion needs shtab: "
        "pip install 'spanbert-fast[completion]'"
    ]


def offered(script, *words):
    """The words that bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in ("spanbert-fast", *words))
    code = (
        f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words)}\n"
        'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}\n'
        "$(complete -p spanbert-fast | sed 's/.*-F \\([^ ]*\\).*/\\1/') 2>/dev/null\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return {line.strip() for line in done.stdout.splitlines()}


def test_bash_completes(capsys):
    shtab = pytest.importorskip("shtab", reason="the extra `completion` is absent")
    assert set(SHELLS) <= set(shtab.SUPPORTED_SHELLS)
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "spanbert-fast" in script and "tag-column" in script, shell
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert offered(script, "p") == {"pretrain", "prepare", "predict"}
    assert offered(script, "finetune", "") >= set(NAMES)
    assert offered(script, "finetune", "ner", "--tag") == {"--tag-column"}
    assert offered(script, "pretrain", "--weights-dtype", "") >= {"fp32", "bf16"}
