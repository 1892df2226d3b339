#!/usr/bin/env python
"""The masked-LM loss against the time spent training, for ours and for Hugging Face.

Both start from the same weights, see the same masked text in the same order, and take steps in
turn; the clock of each runs only during its own forward, backward and update. The loss is that of
held-out text, without dropout. Both minimise the masked-LM loss alone, so the curves differ only by
the speed of a step, the dropout masks and rounding. A speed-up is given only if the loss and the
gradients of both are right (training_check.py).

    python benchmarks/bench_loss_curve.py                 # a minute: 4 layers of 256, real text
    python benchmarks/bench_loss_curve.py --budget 120 --device cuda
"""

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import torch
from results_format import RESULTS, document, write_document
from timing import ratio
from tokenizers.pre_tokenizers import BertPreTokenizer
from training_check import allowed_errors, check_errors, precision, verdict, write_truth
from training_providers import FIRST_WORD, MLM, OURS, Batch, Case
from training_worker import Session

PEER = "hf-sdpa"
UNKNOWN = FIRST_WORD - 1
WARMUP, PEAK_RATE, EVERY = 20, 5e-4, 5  # steps, learning rate, steps between looks at the loss


def text_as_ids(vocab_size: int) -> torch.Tensor:
    """The embedded corpus, int64 (words,); words are numbered by how often they come."""
    from spanbert_fast.data.embedded import embedded_documents  # takes seconds

    split = BertPreTokenizer().pre_tokenize_str
    words = [word for document in embedded_documents() for word, _ in split(document)]
    kept = collections.Counter(words).most_common(vocab_size - FIRST_WORD)
    ids = {word: FIRST_WORD + rank for rank, (word, _) in enumerate(kept)}
    return torch.tensor([ids.get(word, UNKNOWN) for word in words])


class Training:
    """One model in training, with its clock and its held-out loss."""

    def __init__(self, name: str, case: Case, threads: int):
        self.session = Session(name, case, threads)
        self.session.loss = self.session.provider.losses[MLM]
        self.model = self.session.provider.model
        self.steps: list[float] = []
        self.curve: list[tuple[int, float, float]] = []  # steps, seconds, loss

    def step(self, batch: Batch) -> None:
        """One update."""
        self.session.batch = batch
        rate = PEAK_RATE * min(1.0, (len(self.steps) + 1) / WARMUP)
        for group in self.session.optimizer.param_groups:
            group["lr"] = rate
        self.steps.append(self.session.step())

    @torch.no_grad()
    def loss(self, held_out: Batch) -> float:
        """The present loss, without dropout."""
        case = self.session.case
        self.model.eval()
        with precision(case.dtype, case.device):
            loss = self.session.loss(held_out).item()
        self.model.train()
        return loss

    def look(self, held_out: Batch) -> None:
        """Add the present loss to the curve."""
        self.curve.append((len(self.steps), sum(self.steps), self.loss(held_out)))


def error_shares(trainings: dict[str, Training], case: Case) -> dict[str, float]:
    """The largest error of loss and gradients of each model, as a share of the allowed error. The
    models' weights are changed."""
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder) / "truth.pt"
        write_truth(case, truth)
        allowed = allowed_errors(case, truth)
        return {
            name: verdict(check_errors(training.session.provider, case, truth), allowed)[0]
            for name, training in trainings.items()
        }


def measure(case: Case, threads: int, steps: int, budget: float) -> dict[str, Any]:
    """Both curves. `budget` is in seconds for both; after it 3 steps are enough."""
    start = time.perf_counter()
    words = text_as_ids(case.vocab_size)
    size = sum(case.lengths)
    held_out = Batch.of(case, seed=0, words=words[-size:])
    windows = words[:-size].unfold(0, size, size)
    trainings = {name: Training(name, case, threads) for name in (OURS, PEER)}
    ours, theirs = trainings.values()
    weights = {name: t.clone() for name, t in theirs.model.state_dict().items()}
    shares = error_shares(trainings, case)
    passed = all(share <= 1 for share in shares.values())
    for training in trainings.values():
        # ours has the span head, too
        training.model.load_state_dict(weights, strict=training is theirs)
        training.look(held_out)
    for number in range(steps):
        batch = Batch.of(case, seed=number + 1, words=windows[number % len(windows)])
        for training in trainings.values():
            training.step(batch)
            if (number + 1) % EVERY == 0:
                training.look(held_out)
        if number >= 2 and time.perf_counter() - start > budget:
            break
    for training in trainings.values():
        if training.curve[-1][0] < len(training.steps):
            training.look(held_out)
    return {
        "layers": case.layers,
        "hidden_size": case.hidden_size,
        "lengths": list(case.lengths),
        "dtype": case.dtype,
        "dropout": case.dropout,
        "device": case.device,
        "passed": passed,
        "providers": {
            name: {
                "error_share": shares[name],
                "steps": [step for step, _, _ in training.curve],
                "seconds": [seconds for _, seconds, _ in training.curve],
                "loss": [loss for _, _, loss in training.curve],
            }
            for name, training in trainings.items()
        },
        # the first step makes the optimiser's state
        "speedups": {PEER: ratio(theirs.steps[1:], ours.steps[1:])} if passed else {},
    }


def main(argv: list[str] | None = None) -> int:
    """Record both curves; 1 if a loss or a gradient is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=2)
    add("--steps", type=int, default=400, help="at most (400)")
    add("--budget", type=float, default=60, help="seconds (60)")
    add("--tiny", action="store_true", help="2 layers of 64, 12 steps")
    add("--output", type=Path, default=RESULTS / "loss_curve.json")
    options = parser.parse_args(argv)
    if options.steps < 3:
        parser.error(f"--steps must be at least 3, got {options.steps}")
    case = Case(4, 128, (128,) * 8, hidden_size=256, vocab_size=4000, device=options.device)
    if options.tiny:
        case = Case(2, 32, (32,) * 4, hidden_size=64, vocab_size=500, device=options.device)
        options.steps = 12
    result = measure(case, options.threads, options.steps, options.budget)
    for name, found in result["providers"].items():
        print(
            f"{name:<10}{found['steps'][-1]:>5} steps in {found['seconds'][-1]:>6.1f} s, "
            f"loss {found['loss'][0]:.3f} to {found['loss'][-1]:.3f}"
        )
    for name, found in result["speedups"].items():
        print("a step beside {}: {median:.2f} x ({low:.2f} to {high:.2f})".format(name, **found))
    content = document("loss_curve", options.threads, [result], options.device)
    write_document(options.output, content)
    if not result["passed"]:
        print("bench_loss_curve.py: a loss or a gradient is wrong", file=sys.stderr)
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
