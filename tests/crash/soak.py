"""The soak: ragged training, fills and predictions for any length of time. Resident memory, open
files and threads must not grow after the first tenth."""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

EXAMPLES = """example:
  PYTHONPATH=tests python -m crash.soak --seconds 3600
"""
_ROUND = 20  # steps, fills and predictions between two measurements


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="crash.soak",
        description="Train on ragged batches, fill and predict, round after round, and look at "
        "resident memory, file descriptors and threads.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=600, metavar="N", help="default 600")
    parser.add_argument("--most-growth", type=float, default=5.0, metavar="PERCENT",
        help="of resident memory that is no failure (default 5)")  # fmt: skip
    return parser


class Workers:
    """A model that trains, one that fills masks, one that predicts."""

    def __init__(self, folder: Path):
        from finetune_cases import write_folder
        from spanbert_fast import DataCollatorForSpanMasking, FillSpan, SpanBertForPreTraining
        from spanbert_fast.data.tokenizer import load_tokenizer
        from spanbert_fast.tasks.ner import NamedEntities
        from spanbert_fast.training.finetuning.models import initial_model

        write_folder(folder)
        self.tokenizer = load_tokenizer(folder / "model")
        self.trained = SpanBertForPreTraining.from_pretrained(folder / "model").train()
        self.optimizer = torch.optim.AdamW(self.trained.parameters(), lr=1e-4, fused=True)
        self.collator = DataCollatorForSpanMasking(self.tokenizer, seed=1, dropout_seeds=True)
        self.fill_span = FillSpan(self.trained, self.tokenizer)
        self.task = NamedEntities(max_seq_length=32, labels=["O", "B-PER", "I-PER"])
        self.examples = self.task.read(folder / "test.conll").items
        self.predicting = initial_model(
            str(folder / "model"), self.task, self.tokenizer, engine="spanbert_fast"
        )
        self.draw, self.example = random.Random(2), 0

    def train(self) -> None:
        """A step on 1 to 12 sequences of 3 to 60 tokens."""
        most = len(self.tokenizer)
        sequences = []
        for _ in range(self.draw.randint(1, 12)):
            ids = [self.draw.randrange(5, most) for _ in range(self.draw.randint(1, 58))]
            ids = [self.tokenizer.cls_token_id, *ids, self.tokenizer.sep_token_id]
            sequences.append({"input_ids": ids, "example_id": self.example})
            self.example += 1
        self.trained(**self.collator(sequences)).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def fill(self) -> None:
        """Fill one to five masks among words."""
        words = ["they", "met", "Mary", "near", "Oslo"] * self.draw.randint(1, 3)
        at = self.draw.randrange(1, len(words))
        words[at:at] = ["[MASK]"] * self.draw.randint(1, 5)
        heads = self.draw.choice(("mlm", "both"))
        assert self.fill_span(" ".join(words), head=heads, iterative=self.draw.random() < 0.3)
        assert self.trained.training

    def predict(self) -> None:
        """Predict for a few sentences."""
        from spanbert_fast.tasks.predict import predict

        chosen = self.draw.sample(self.examples, self.draw.randint(1, 8))
        assert len(predict(self.predicting, self.task, chosen, self.tokenizer)) == len(chosen)


def look() -> tuple[float, int, int]:
    """(resident MiB, open files, threads) of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return resident, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def main() -> int:
    """Work and measure."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workers = Workers(Path(folder))
        began, rounds = time.monotonic(), 0
        seen: list[tuple[float, int, int]] = []
        said = 0.0
        while (spent := time.monotonic() - began) < options.seconds:
            for work in (workers.train, workers.fill, workers.predict):
                for _ in range(_ROUND):
                    work()
            rounds += 1
            seen.append(look())
            if spent - said >= 30:
                said = spent
                print("{:6.0f} s  {:8.1f} MiB  {} files  {} threads".format(spent, *seen[-1]))
    settled = seen[len(seen) // 10 :]
    each = rounds * _ROUND
    print(f"{each:,} steps, {each:,} fills, {each:,} predictions in {options.seconds:g} s")
    for name, values in zip(("resident MiB", "files", "threads"), zip(*settled, strict=True),
                            strict=True):  # fmt: skip
        print(f"{name:<14}{values[0]:10.1f} then, {values[-1]:10.1f} now, {max(values):10.1f} most")
    growth = 100 * (max(s[0] for s in settled) / settled[0][0] - 1)
    flat = growth <= options.most_growth and all(s[1:] == settled[0][1:] for s in settled)
    print("flat" if flat else f"not flat: resident memory has grown by {growth:.1f} %")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
