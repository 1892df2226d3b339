"""What the options of pre-training and of fine-tuning share."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from spanbert_fast.errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
WEIGHTS_DTYPES = ("fp32", "bf16")
# fields of transformers.TrainingArguments that have no effect in any run, with the reason
_ALWAYS = {
    "neftune_noise_alpha": "the encoder embeds packed tokens, which no noise is added to",
    "group_by_length": "batches are packed, whatever the lengths",
    "label_names": "the targets are known",
    "remove_unused_columns": "a batch holds what the model takes",
    "disable_tqdm": "the command has a progress line of its own",
    "past_index": "an encoder has no past",
    "push_to_hub": "`huggingface-cli upload` publishes the folder model/ of a run",
}


class RunOptions(Protocol):
    """The fields that `PretrainOptions` and `FinetuneOptions`, both dataclasses, have in common."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def output_dir(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def precision(self) -> str: ...

    @property
    def weights_dtype(self) -> str: ...

    @property
    def training_arguments(self) -> dict[str, Any]: ...


def check_precision(precision: str, weights_dtype: str) -> None:
    """Raise UsageError if a value is unknown, or if the two exclude each other."""
    if precision not in PRECISIONS:
        raise UsageError(f"--precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    if weights_dtype not in WEIGHTS_DTYPES:
        allowed = " or ".join(WEIGHTS_DTYPES)
        raise UsageError(f"--weights-dtype must be {allowed}, got {weights_dtype}")
    if weights_dtype == "bf16" and precision not in ("auto", "bf16"):
        raise UsageError(
            f"--precision must be auto or bf16 with --weights-dtype bf16, got {precision}"
        )


def refuse_without_effect(given: Mapping[str, object], more: Mapping[str, str]) -> None:
    """Raise UsageError, with the reason, at the first field that has no effect.

    Args:
        given: fields of TrainingArguments.
        more: further fields that have no effect, with the reason.
    """
    reasons = {**_ALWAYS, **more}
    for name in given:
        if name in reasons:
            raise UsageError(f"--set {name} has no effect: {reasons[name]}")
