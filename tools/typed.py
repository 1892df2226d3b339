"""Runs commands as a user types them, each in a clean process, and tabulates what happens.

    python tools/typed.py [--model runs/first/model] [--sections TITLE ...] [--output docs/typed.md]

Needs a checkpoint of `spanbert-fast pretrain`. Nothing is downloaded: the Hub is offline, and its
cache, which is made here, holds the model as somebody/spanbert. The exit code is 1 if a command
has another exit code, or another output, than its case says.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from typed_cases import MAKERS, SECTIONS, Case  # noqa: E402
from typed_files import write_files  # noqa: E402

HEAD = """# What you type, what happens

Commands that people type on their first day. `tools/typed.py` ran each in its own process and wrote
this page. `model` is the checkpoint that `spanbert-fast pretrain` leaves in `runs/first/model`; the
other files are small. Rows marked *transformers alone* run Python that never loads spanbert_fast.
"LOAD REPORT" marks rows in which transformers lists tensors: those of a head that the class does
not have, or of a new head; any masked-LM checkpoint has such rows in AutoModel. "s" is the
processor time in seconds, start-up included.
"""
THEIRS = (
    "from transformers import (AutoModel, AutoModelForMaskedLM, RobertaConfig, RobertaForMaskedLM, "
    "pipeline)"
)
ALONE = "\nassert not any(name.split('.')[0] == 'spanbert_fast' for name in sys.modules)"
LONGEST = 170


def run(case: Case, folder: Path) -> tuple[bool, int, str, float]:
    """(whether it met its case, exit code, the line that shows it, CPU seconds)."""
    kind, code = case.typed[:4], case.typed[4:]
    command = ["bash", "-o", "pipefail", "-c", case.typed]
    if kind in ("py: ", "hf: "):
        first = "import sys\n" + (f"{THEIRS}\n" if kind == "hf: " else "")
        command = [sys.executable, "-c", first + code + (ALONE if kind == "hf: " else "")]
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "MYPYPATH": str(Path(__file__).resolve().parent.parent),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "HF_HUB_OFFLINE": "1",
    }
    before = _children_seconds()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800
    )
    seconds = _children_seconds() - before
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines()]
    found = next((line for line in lines if re.search(case.says, line)), None)
    last = next((line for line in reversed(lines) if line), "")
    report = "LOAD REPORT; " if any("LOAD REPORT" in line for line in lines) else ""
    good = found is not None and done.returncode == case.code
    return good, done.returncode, report + (found or last), seconds


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(case: Case, code: int, line: str, seconds: float, folder: Path) -> str:
    """A row of the table, without paths of this machine."""
    alone = "*transformers alone:* " if case.typed.startswith("hf: ") else ""
    shown = case.typed.removeprefix("py: ").removeprefix("hf: ").replace("|", "\\|")
    for place in (folder.resolve(), folder):
        line = line.replace(str(place), ".")
    line = line.replace(str(Path(__file__).resolve().parent.parent) + "/", "").replace("`", "'")
    line = " ".join(line.split()).replace("|", "\\|")
    line = line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."
    return f"| {alone}`` {shown} `` | {code} | `` {line} `` | {seconds:.1f} |"


def section(title: str, folder: Path, only: str, wrong: list[str]) -> Iterator[str]:
    """The lines of a section; cases that fail are added to `wrong`, too."""
    yield from (f"## {title}", "", "| typed | exit | what happens | s |", "|---|---:|---|---:|")
    for case in SECTIONS[title]:
        if only not in case.typed:
            continue
        for name, maker in MAKERS.items():
            if case.typed == maker:  # an earlier section may have created it
                shutil.rmtree(folder / name, ignore_errors=True)
            elif name in case.typed and not (folder / name).exists():
                run(Case(maker, ""), folder)
        good, code, line, seconds = run(case, folder)
        made = row(case, code, line, seconds, folder)
        yield made
        if not good:
            wrong.append(made)
    yield ""


def write(path: Path, title: str, lines: list[str]) -> None:
    """Replace a section of the page; the other sections stay."""
    parts = re.split(r"(?m)^(?=## )", path.read_text(encoding="utf-8") if path.exists() else "")
    known = {part.splitlines()[0][3:]: part for part in parts if part.startswith("## ")}
    known[title] = "\n".join(lines) + "\n"
    body = "".join(known[name] for name in SECTIONS if name in known)
    path.write_text(f"{HEAD}\n{body}".rstrip() + "\n", encoding="utf-8")


def main() -> int:
    """Run all sections or some; returns 1 if a case fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("runs/first/model"))
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--only", default="", help="commands with this in them")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the sections there, too")
    options = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        write_files(Path(scratch), options.model.resolve())
        for title in options.sections:
            lines = []
            for line in section(title, Path(scratch), options.only, wrong):
                print(line, flush=True)
                lines.append(line)
            if options.output is not None:
                write(options.output, title, lines)
    for line in wrong:
        print("not as it should be:", line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
