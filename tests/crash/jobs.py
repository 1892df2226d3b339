"""The three commands that meet faults: how each is resumed, and the files that it must leave."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from finetune_cases import write_folder
from spanbert_fast import digests
from spanbert_fast.data import prepare as prepare_module
from spanbert_fast.training.whole_checkpoints import WholeCheckpoints

_SMALL = (
    "--hidden-size 32 --num-hidden-layers 1 --num-attention-heads 2 --intermediate-size 32 "
    "--vocab-size 120 --max-seq-length 32 --tokens-per-batch 128 --warmup-steps 2 --held-out 0.1 "
    "--logging-steps 1 --seed 3 --max-steps 9 --save-steps 3"
)
_NO_NUMBER = ("tokens_per_second", "seconds")  # these differ between equal runs


@dataclass(frozen=True)
class Job:
    """A command that writes into a directory.

    Attributes:
        begin: its arguments.
        go_on: the arguments that resume it from the directory that it left.
        result: what is compared with the result of an undisturbed run.
        allowed: names that may be in its directory in the end.
        refusal: what it says, with exit code 2, if it is resumed after it has finished.
    """

    name: str
    begin: Callable[[Path], list[str]]
    go_on: Callable[[Path], list[str]]
    result: Callable[[Path], object]
    allowed: frozenset[str]
    refusal: str | None = None

    def strangers(self, run: Path) -> list[str]:
        """The files that it has left and should not have."""
        names = {path.name for path in run.rglob("*")}
        bad = {n for n in names if n.endswith(".partial") or n in ("unfinished", ".lock")}
        top = {path.name for path in run.iterdir()}
        top = {name for name in top if not name.startswith(("checkpoint-", "damaged-"))}
        return sorted(bad | (top - self.allowed))


def jobs(folder: Path) -> dict[str, Job]:
    """All jobs; their data is written to the folder."""
    folder.mkdir()
    draw = random.Random(5)
    words = "river mountain teacher garden letter winter island engine follows paints".split()
    lines = [" ".join(draw.choices(words, k=9)) + "." for _ in range(160)]
    text = folder / "text.txt"
    text.write_text("\n\n".join("\n".join(lines[i : i + 5]) for i in range(0, 160, 5)))
    write_folder(folder)
    prepare_module.prepare.__kwdefaults__["shard_tokens"] = 300  # several shards of a small text

    def pretrain(run: Path) -> list[str]:
        return ["pretrain", "--data", str(text), "--output-dir", str(run), *_SMALL.split()]

    def prepare(run: Path) -> list[str]:
        options = ["--data", str(text), "--vocab-size", "120", "--output-dir", str(run)]
        return ["prepare", *options]

    def finetune(run: Path) -> list[str]:
        splits = [f"--{split}={folder / split}.conll" for split in ("train", "dev", "test")]
        options = "--max-train 24 --max-dev 6 --epochs 3 --max-seq-length 32 --batch-size 8"
        where = ["--model", str(folder / "model"), "--output-dir", str(run)]
        return ["finetune", "ner", *where, *splits, *options.split(), "--learning-rate", "3e-3"]

    def resumed(begin: Callable, *words: str) -> Callable[[Path], list[str]]:
        def go_on(run: Path) -> list[str]:
            started = (run / "options.json").exists()
            return [*words, "--output-dir", str(run), "--resume"] if started else begin(run)

        return go_on

    common = {"options.json", "model", "tensorboard"}
    run_files = {"metrics.jsonl", "summary.json", "loss.png", "shards"}
    splits = {"metrics.json", "curves.png", "predictions-dev", "predictions-test"}
    shards = {f"shard-{n:05d}.safetensors" for n in range(99)}
    shards |= {"corpus.json", "tokenizer.json", "tokenizer_config.json"}
    return {
        "pretrain": Job(
            "pretrain", pretrain, resumed(pretrain, "pretrain"), _of_pretrain,
            frozenset(common | run_files),
        ),
        "prepare": Job(
            "prepare", prepare, prepare, _of_prepare, frozenset(shards),
            refusal="already holds shards",
        ),
        "finetune": Job(
            "finetune", finetune, resumed(finetune, "finetune", "ner"), _of_finetune,
            frozenset(common | splits),
        ),
    }  # fmt: skip


def watch_export(mark: Callable[[str], None]) -> None:
    """Mark where the final export begins and ends."""
    export = WholeCheckpoints.export

    def marked(self, *args):
        mark("export begins")
        export(self, *args)
        mark("export ends")

    WholeCheckpoints.export = marked


def _of_pretrain(run: Path) -> object:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    return _weights(run), [_numbers(line) for line in lines], _numbers(summary)


def _of_finetune(run: Path) -> object:
    predictions = (run / "predictions-test" / "predictions.conll").read_text()
    return _weights(run), predictions, _numbers(json.loads((run / "metrics.json").read_text()))


def _of_prepare(run: Path) -> object:
    return {path.name: path.read_bytes() for path in run.iterdir()}


def _weights(run: Path) -> dict[str, bytes]:
    fault = digests.damage(run / "model")
    if fault is not None:
        raise ValueError(fault)
    tensors = load_file(run / "model" / "model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def _numbers(content: dict) -> dict:
    return {name: value for name, value in content.items() if name not in _NO_NUMBER}
