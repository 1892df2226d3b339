"""Fields of transformers.TrainingArguments that would be swallowed: a run refuses them."""

from collections.abc import Mapping

from spanbert_fast.errors import UsageError

_ALWAYS = {
    "neftune_noise_alpha": "the encoder embeds packed tokens, which no noise is added to",
    "group_by_length": "batches are packed, whatever the lengths",
    "label_names": "the targets are known",
    "remove_unused_columns": "a batch holds what the model takes",
    "disable_tqdm": "the command has a progress line of its own",
    "past_index": "an encoder has no past",
    "push_to_hub": "`huggingface-cli upload` publishes the folder model/ of a run",
}


def refuse_without_effect(given: Mapping[str, object], more: Mapping[str, str]) -> None:
    """Raise UsageError, with the reason, at the first field that a run does not go by.

    Args:
        given: fields of TrainingArguments.
        more: further fields that have no effect, with the reason.
    """
    reasons = {**_ALWAYS, **more}
    for name in given:
        if name in reasons:
            raise UsageError(f"--set {name} has no effect: {reasons[name]}")
