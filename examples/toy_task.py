"""A fine-tuning task of one's own in one file: does a sentence hold a number?

    python examples/toy_task.py MODEL_DIRECTORY OUTPUT_DIRECTORY

MODEL_DIRECTORY holds any BERT or SpanBERT checkpoint, such as runs/first/model. Registered, a task
has all that the others have: the best epoch is kept, a killed run resumes, predictions and a model
card are written.
"""

import random
import sys
import tempfile
from pathlib import Path

from spanbert_fast import tasks
from spanbert_fast.tasks.base import Bad, Defaults, Example, Task
from spanbert_fast.training import FinetuneOptions, finetune


@tasks.register
class HoldsNumber(Task):
    """One sentence a line; the label is found by looking."""

    name, head, metric = "number", "sequence-classification", "accuracy"
    defaults = Defaults(learning_rate=5e-4, epochs=3, batch_size=16, max_seq_length=32)

    @classmethod
    def add_arguments(cls, parser):
        """There are no options."""

    def parse(self, path):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            place = f"{path}:{number}"
            yield Example(line, place) if line.strip() else Bad(place, "is blank")

    def learn(self, examples):
        self.labels = ["no", "yes"]

    def label(self, example):
        return any(character.isdigit() for character in example.id)

    def windows(self, example, tokenizer):
        ids = tokenizer(example.id, truncation=True, max_length=self.max_seq_length).input_ids
        types = [0] * len(ids)
        yield {"input_ids": ids, "token_type_ids": types, "labels": int(self.label(example))}

    def decode(self, example, windows, outputs):
        return self.labels[int(outputs[0]["logits"].argmax())]

    def metrics(self, examples, predictions):
        right = [
            p == self.labels[self.label(e)] for e, p in zip(examples, predictions, strict=True)
        ]
        return {"accuracy": 100.0 * sum(right) / len(right), "total": len(right)}

    def write(self, path, examples, predictions):
        path.write_text(
            "".join(f"{p}\t{e.id}\n" for e, p in zip(examples, predictions, strict=True))
        )
        return [path]


def main(model: str, output: str) -> float:
    """Train on made-up sentences; returns the accuracy on others."""
    draw = random.Random(0)
    words = "the value of this function is a list or string with many items".split()
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for split, count in (("train", 256), ("dev", 64)):
            lines = [draw.choices(words, k=draw.randint(4, 12)) for _ in range(count)]
            for line in lines[::2]:
                line[draw.randrange(len(line))] = str(draw.randrange(1000))
            files[split] = str(Path(folder, f"{split}.txt"))
            Path(files[split]).write_text("".join(" ".join(line) + "\n" for line in lines))
        options = FinetuneOptions(task="number", model=model, output_dir=output, **files)
        result = finetune(options, overwrite=True)
    print(f"{result['dev']['accuracy']:.1f} % right; the model is in {result.model_dir}")
    return result["dev"]["accuracy"]


if __name__ == "__main__":
    main(*sys.argv[1:])
