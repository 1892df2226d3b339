"""The base of both Trainers: checkpoints are complete, and losses and weights are finite."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel, Trainer, TrainerCallback

from spanbert_fast import digests
from spanbert_fast.errors import DataError
from spanbert_fast.models.loading import not_finite
from spanbert_fast.training.checkpoints import UNFINISHED, checkpoints, drop_old, publish


class WholeCheckpoints(Trainer):
    """A Trainer that writes only complete checkpoints with finite weights.

    The arguments must have `logging_nan_inf_filter=False`; with True it hides losses of NaN.
    """

    model: PreTrainedModel  # the Trainer's __init__ sets it

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._writing_to: str | None = None
        self.add_callback(_LogsBeforeSaving())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, and check the loss.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        if "loss" in logs and not math.isfinite(logs["loss"]):
            raise self.not_a_number(f"the loss is {logs['loss']}")
        super().log(logs, start_time)

    def not_a_number(self, what: str) -> FloatingPointError:
        """The error that ends a run; it names the checkpoint to continue from."""
        last = next(reversed(checkpoints(self._run)), None)
        good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        return FloatingPointError(
            f"{what} after step {self.state.global_step}; {good}; lower --learning-rate, let it "
            "rise for longer, or use --precision fp32"
        )

    @property
    def _run(self) -> Path:
        return Path(str(self.args.output_dir))

    def _refuse_not_finite(self) -> None:
        name = not_finite(self.model)
        if name is not None:
            raise self.not_a_number(f"{name} is no longer finite")

    def _get_output_dir(self, trial) -> str:
        return self._writing_to or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        """Write into another folder, and rename it when it is complete.

        Raises:
            FloatingPointError: a weight is NaN or infinite.
            OSError: the checkpoint could not be written (a full disk); earlier ones stay.
        """
        self._refuse_not_finite()
        run = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        self._writing_to = str(run / UNFINISHED)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            best_step = self.state.best_global_step
            best = f"checkpoint-{best_step}" if best_step else None
            if best is not None:  # its final place, not the folder in which it was written
                self.state.best_model_checkpoint = str(run / best)
            if self.args.should_save:
                publish(run / UNFINISHED / name, run / name, self.model.config)
                drop_old(run, self.args.save_total_limit, best)
                shutil.rmtree(run / UNFINISHED, ignore_errors=True)
            self.accelerator.wait_for_everyone()
        except Exception as error:
            shutil.rmtree(run / UNFINISHED, ignore_errors=True)
            raise OSError(
                f"{run}: the checkpoint of step {self.state.global_step} could not be saved "
                f"({_one_line(error)}); earlier checkpoints are whole, go on with --resume"
            ) from error
        finally:
            self._writing_to = None

    def _load_best_model(self) -> None:
        """Load it as the Trainer does, even if the run's directory has been moved.

        Raises:
            DataError: the best checkpoint is damaged.
        """
        best = self._run / f"checkpoint-{self.state.best_global_step}"
        fault = digests.damage(best)
        if fault is not None:
            raise DataError(f"{best}, the best one, is damaged: {fault}")
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()

    def export(self, target: Path, finish: Callable[[Path], None] | None = None) -> None:
        """Save the model, its configuration and its tokenizer in a folder, completely or not at
        all.

        Args:
            target: a folder in the run's directory.
            finish: called with the unfinished folder, to write more into it.

        Raises:
            FloatingPointError: a weight is NaN or infinite.
        """
        self._refuse_not_finite()
        unfinished = target.parent / UNFINISHED
        written = unfinished / target.name
        try:
            self.save_model(str(written))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (written / "training_args.bin").unlink(missing_ok=True)
                if finish is not None:
                    finish(written)
                publish(written, target, self.model.config)
        finally:
            if self.args.should_save:
                shutil.rmtree(unfinished, ignore_errors=True)


class _LogsBeforeSaving(TrainerCallback):
    """Logs before every checkpoint, which also checks the loss.

    A checkpoint does not hold the sums since the last log line; after a log there are none.
    """

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save:
            control.should_log = True
        return control

    on_epoch_end = on_step_end


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
