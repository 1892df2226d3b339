"""The result of a run, for the program that started it."""

from pathlib import Path


class RunResult(dict):
    """The figures of a run, as in its summary.json or metrics.json, and the paths of its files.

    Attributes:
        output_dir: the run's directory.
        model_dir: the run's checkpoint, with its tokenizer and model card.
    """

    def __init__(self, figures: dict, output_dir: str | Path):
        super().__init__(figures)
        self.output_dir = Path(output_dir)
        self.model_dir = self.output_dir / "model"
