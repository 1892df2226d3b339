"""What a run gives back to the program that has started it."""

from pathlib import Path


class RunResult(dict):
    """The figures of a run, as its summary.json or metrics.json holds them, and where it lies.

    Attributes:
        output_dir: the run's directory.
        model_dir: the checkpoint that it has left, with its tokenizer and its card.
    """

    def __init__(self, figures: dict, output_dir: str | Path):
        super().__init__(figures)
        self.output_dir = Path(output_dir)
        self.model_dir = self.output_dir / "model"
