"""The crash campaign: a fault must not change a run's result, or the run must report it.

It ends with a table of the faults that were tried, and how often a process crashed (a signal, a
traceback, a hang), was silently wrong (another result, files left behind, a damage not reported) or
unclear (a message that does not say what is wrong).
"""

import argparse
import collections
import dataclasses
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from crash.processes import Fault, Outcome, preload, run, start

EXAMPLES = """examples:
  make check-crash
  PYTHONPATH=tests python -m crash --kills 300 --full-disks 0 --seed 7
"""
CRASHED, SILENT, UNCLEAR = "crashed", "silent", "unclear"


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="crash",
        description="Kill, interrupt and starve pretrain, prepare, finetune and the final export, "
        "damage what they leave, go on, and compare with a run to which nothing happened.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--kills", type=int, default=20, metavar="N", help="kill -9, in all (default 20)")
    add("--signals", type=int, default=2, metavar="N", help="of each kind and command (default 2)")
    add(
        "--full-disks", type=int, default=8, metavar="N",
        help="writes of each command from which on the disk is full (default 8; 0: every one)",
    )  # fmt: skip
    add("--job", action="append", choices=("pretrain", "prepare", "finetune"), help="only these")
    add("--no-damage", action="store_true", help="leave the damaged files out")
    add("--seed", type=int, default=0, metavar="N", help="of the moments (default 0)")
    return parser


class Campaign:
    """Runs cases and counts their outcomes."""

    def __init__(self, root: Path, options: argparse.Namespace):
        from crash.jobs import jobs, watch_export

        self.root, self.draw = root, random.Random(options.seed)
        self.all_jobs = jobs(root / "data")
        self.jobs = {name: self.all_jobs[name] for name in options.job or self.all_jobs}
        self.tried: collections.Counter[str] = collections.Counter()
        self.faults: collections.Counter[tuple[str, str]] = collections.Counter()
        self.messages: list[str] = []
        self.references: dict[str, Outcome] = {}
        self.results: dict[str, object] = {}
        for name, job in self.jobs.items():
            directory = root / f"reference-{name}"
            outcome = run(job.begin(directory), root / f"{name}-scratch", watch=watch_export)
            if outcome.code:
                raise SystemExit(f"{name} fails by itself: {outcome.output}")
            self.references[name] = outcome
            self.results[name] = job.result(directory)
        self.number = 0

    def case(self, kind: str, name: str) -> tuple[Path, Path]:
        """(directory of the run, its scratch directory) of a new case."""
        self.number += 1
        self.tried[kind] += 1
        print(f"{self.number} {kind}: {name}", flush=True)
        return self.root / f"run-{self.number}", self.root / f"scratch-{self.number}"

    def fault(self, kind: str, what: str, text: str) -> None:
        self.faults[kind, what] += 1
        self.messages.append(f"{kind}, case {self.number}, {what}: {text}")

    def check_message(self, kind: str, outcome: Outcome, codes: tuple[int, ...], *words) -> bool:
        """Check that a command that could not do its work has said so clearly."""
        if outcome.code not in codes or "Traceback" in outcome.output:
            self.fault(kind, CRASHED, f"code {outcome.code}: {outcome.output[-600:]}")
        elif not all(word in outcome.last_line for word in words):
            self.fault(kind, UNCLEAR, outcome.last_line)
        else:
            return True
        return False

    def go_on(self, kind: str, name: str, directory: Path, scratch: Path) -> Outcome:
        """Resume from the files that are left; compare the result."""
        job = self.jobs[name]
        left = [str(p) for p in (scratch / "tmp").rglob("*")]
        outcome = run(job.go_on(directory), scratch)
        finished = job.refusal is not None and outcome.code == 2
        finished = finished and job.refusal in outcome.last_line
        if outcome.code and not finished:
            self.check_message(kind, outcome, (0,))
            return outcome
        try:
            same = job.result(directory) == self.results[name]
        except (OSError, ValueError) as error:
            self.fault(kind, SILENT, f"code 0, and {error}")
            return outcome
        left += job.strangers(directory)
        if not same or left:
            self.fault(kind, SILENT, f"{'left behind: ' + str(left) if same else 'other result'}")
        shutil.rmtree(directory)
        return outcome

    def strike(self, kind: str, name: str, fault: Fault) -> tuple[Outcome, Path, Path]:
        """(outcome, directory, scratch) of a command that meets a fault. If it ends before the
        fault, another one meets it in half the time."""
        while True:
            directory, scratch = self.case(kind, f"{name} {fault}")
            outcome = run(self.jobs[name].begin(directory), scratch, fault)
            if outcome.code or fault.moment is None:
                return outcome, directory, scratch
            self.tried[kind] -= 1
            fault = dataclasses.replace(fault, moment=fault.moment / 2)

    def kill(self, name: str, fault: Fault, kind: str) -> None:
        outcome, directory, scratch = self.strike(kind, name, fault)
        if outcome.code == 0:  # it made fewer calls than the reference
            self.tried[kind] -= 1
        elif outcome.code != -signal.SIGKILL:
            self.fault(kind, CRASHED, f"code {outcome.code}: {outcome.output[-600:]}")
        else:
            self.go_on(kind, name, directory, scratch)

    def kills(self, count: int) -> None:
        """Kills: a third each at random moments, at counted calls, and during the final export."""
        exporting = [name for name in self.jobs if name != "prepare"]
        names = list(self.jobs)
        for number in range(count):
            if number % 3 == 2 and exporting:
                name = exporting[number // 3 % len(exporting)]
                marks = self.references[name].marks
                at = self.draw.randint(marks["export begins"] + 1, marks["export ends"])
                self.kill(name, Fault(kill_at=at), "kill -9 in the final export")
                continue
            name = names[number // 3 % len(names)]
            reference = self.references[name]
            if number % 3:
                at = self.draw.randint(1, reference.calls)
                self.kill(name, Fault(kill_at=at), "kill -9 at a counted call")
            else:
                moment = self.draw.uniform(0, reference.seconds)
                self.kill(name, Fault(moment=moment), "kill -9 at a random moment")

    def signals(self, count: int) -> None:
        """SIGTERM and SIGINT at random moments."""
        for sent, code, word in (
            (signal.SIGTERM, 143, "terminated"),
            (signal.SIGINT, 130, "interrupted"),
        ):
            for name in [name for name in self.jobs for _ in range(count)]:
                moment = self.draw.uniform(0.1, 0.9) * self.references[name].seconds
                fault = Fault(moment=moment, signal=sent)
                outcome, directory, scratch = self.strike(sent.name, name, fault)
                if self.check_message(sent.name, outcome, (code,), word):
                    self.go_on(sent.name, name, directory, scratch)

    def full_disks(self, count: int) -> None:
        """A disk that is full from the n-th write on, and has space again afterwards."""
        for name, job in self.jobs.items():
            writes = self.references[name].writes
            places = range(1, writes + 1)
            if count and count < writes:
                places = sorted(self.draw.sample(places, count))
            for place in places:
                kind = "disk full"
                directory, scratch = self.case(kind, f"{name} from write {place} of {writes} on")
                outcome = run(job.begin(directory), scratch, Fault(full_from=place))
                if outcome.code == 0 or self.check_message(kind, outcome, (1,), "error: "):
                    self.go_on(kind, name, directory, scratch)

    def two_runs(self) -> None:
        """A second run, and one that would replace the first, are refused while that one lives."""
        for name, job in self.jobs.items():
            kind = "two runs in one directory"
            directory, scratch = self.case(kind, name)
            first = start(job.begin(directory), scratch, Fault())
            while first.is_running() and not (directory / ".lock").exists():
                time.sleep(0.001)
            os.kill(first.pid, signal.SIGSTOP)  # so that it does not end meanwhile
            for more in ([], ["--overwrite"]):
                other = run([*job.begin(directory), *more], self.root / "second")
                self.check_message(kind, other, (2,), "being written by another process")
            os.kill(first.pid, signal.SIGCONT)
            outcome = first.wait()
            if outcome.code:
                self.fault(kind, CRASHED, f"the first one: {outcome.output[-600:]}")
            elif job.result(directory) != self.results[name]:
                self.fault(kind, SILENT, "other result")

    def damages(self) -> None:
        """Each file of the newest checkpoint is removed, cut in half, or has one bit flipped."""
        from spanbert_fast.training.checkpoints import checkpoints

        for name in [name for name in self.jobs if name != "prepare"]:
            reference = self.root / f"reference-{name}"
            files = sorted(path.name for path in checkpoints(reference)[-1].iterdir())
            for file in files:
                for how in ("removed", "truncated", "flipped"):
                    kind = f"a checkpoint's file {how}"
                    directory, scratch = self.case(kind, f"{name} {file}")
                    shutil.copytree(reference, directory)
                    spoil(checkpoints(directory)[-1] / file, how)
                    (scratch / "tmp").mkdir(parents=True)
                    outcome = self.go_on(kind, name, directory, scratch)
                    if outcome.code == 0 and file not in outcome.output:
                        self.fault(kind, SILENT, f"{file} is not named: {outcome.output[-300:]}")

    def damaged_results(self) -> None:
        """The same for each file of a model that is loaded, and of a prepared corpus."""
        for name, folder, command in (
            ("pretrain", "model", lambda d: ["fill", "A [MASK] river.", "--model", f"{d}/model"]),
            ("finetune", "model", self._predict),
            ("prepare", ".", self._pretrain_on),
        ):
            if name not in self.jobs:
                continue
            reference = self.root / f"reference-{name}"
            good = run(command(reference), self.root / "good")
            for file in sorted(p.name for p in (reference / folder).iterdir() if p.is_file()):
                for how in ("removed", "truncated", "flipped"):
                    kind = f"a result's file {how}"
                    directory, scratch = self.case(kind, f"{name} {file}")
                    shutil.copytree(reference, directory)
                    spoil(directory / folder / file, how)
                    outcome = run(command(directory), scratch)
                    same = _figures(outcome) == _figures(good)
                    if outcome.code == 0 and not same:
                        self.fault(kind, SILENT, f"{file}: {outcome.output[-300:]}")
                    elif outcome.code:
                        self.check_message(kind, outcome, (1, 2), str(directory))
                    shutil.rmtree(directory)

    def _predict(self, directory: Path) -> list[str]:
        data, out = self.root / "data" / "test.conll", self.root / "predicted"
        return ["predict", "ner", f"{directory}/model", str(data), "--output", str(out)]

    def _pretrain_on(self, directory: Path) -> list[str]:
        options = self.all_jobs["pretrain"].begin(self.root / "on-prepared")
        options[options.index("--data") + 1] = str(directory)
        return [*options, "--max-steps", "1", "--overwrite"]

    def table(self) -> str:
        """The table of faults and outcomes."""
        columns = ("tried", CRASHED, SILENT, UNCLEAR)
        rows = [f"{'':<34}" + "".join(f"{name:>9}" for name in columns)]
        for kind, tried in self.tried.items():
            counts = [tried, *(self.faults[kind, what] for what in columns[1:])]
            rows.append(f"{kind:<34}" + "".join(f"{count:>9}" for count in counts))
        return "\n".join([*rows, "", *self.messages])


def _figures(outcome: Outcome) -> list[str]:
    """The lines of a command's output that give its result, without paths and speeds."""
    lines = outcome.output.splitlines()
    return [line for line in lines if "/" not in line and "tokens/s" not in line]


def spoil(path: Path, how: str) -> None:
    """Remove a file, cut it in half, or flip a bit of it."""
    content = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
        return
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content if how == "flipped" else content[: len(content) // 2])


def main() -> int:
    """Run the campaign."""
    options = parser().parse_args()
    preload()
    import torch

    import spanbert_fast.commands.fill  # noqa: F401
    import spanbert_fast.training.finetuning.finetune  # noqa: F401
    import spanbert_fast.training.pretraining.pretrain  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        campaign = Campaign(Path(folder), options)
        campaign.kills(options.kills)
        campaign.signals(options.signals)
        campaign.two_runs()
        campaign.full_disks(options.full_disks)
        if not options.no_damage:
            campaign.damages()
            campaign.damaged_results()
        print(campaign.table())
    return 1 if campaign.messages else 0


if __name__ == "__main__":
    sys.exit(main())
