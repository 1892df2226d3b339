"""Predictions of a fine-tuned model, with windows batched by length."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from spanbert_fast.meter import Meter
from spanbert_fast.models.base import SpanBertPreTrainedModel
from spanbert_fast.models.evaluation_mode import evaluation_mode
from spanbert_fast.tasks.base import DocumentTask, Example, Task
from spanbert_fast.tasks.windows import WindowCollator, length_of

_TOKENS_PER_BATCH = 8192
# Windows that are sorted by length together: enough for batches of similar lengths, and few enough
# that a long document is held in parts.
_WAITING = 1024


class _Open:
    """An example of which some windows have not been run yet."""

    def __init__(self, index: int):
        self.index = index
        self.windows: list[dict] = []
        self.outputs: list[dict[str, np.ndarray] | None] = []
        self.all_made = False

    def finished(self) -> bool:
        return self.all_made and all(output is not None for output in self.outputs)


def predict(*args, **kwargs) -> list[Any]:
    """`predictions` as a list, with the same arguments."""
    return list(predictions(*args, **kwargs))


@torch.no_grad()
def predictions(
    model: nn.Module,
    task: Task,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    tokens_per_batch: int = _TOKENS_PER_BATCH,
    progress: bool = False,
) -> Iterator[Any]:
    """Yield one prediction per example, in order, each as soon as it and those before are made.

        >>> from transformers import AutoTokenizer, BertForTokenClassification
        >>> from spanbert_fast.tasks.ner import NamedEntities, Sentence
        >>> task, one = NamedEntities(labels=["O", "B-X"]), Sentence("0", "", ["A", "word"], None)
        >>> tokenizer = AutoTokenizer.from_pretrained("runs/first/model")
        >>> model = BertForTokenClassification.from_pretrained("runs/first/model")
        >>> len(next(predictions(model, task, [one], tokenizer)))
        2

    Args:
        model: with the task's head; ours gets packed batches, any other padded ones.
        tokens_per_batch: the most word pieces of one forward, padding included.
        progress: log how many are done.

    Memory grows with the outputs of one example, not with the file.

    Raises:
        FloatingPointError: the model's outputs are not finite.
    """
    if isinstance(task, DocumentTask):
        yield from task.predictions(
            model,
            examples,
            tokenizer,
            autocast=autocast,
            tokens_per_batch=tokens_per_batch,
            progress=progress,
        )
        return
    device = next(model.parameters()).device
    core = getattr(model, "module", model)
    packed = isinstance(core, SpanBertPreTrainedModel)
    collate = WindowCollator(packed, tokenizer.pad_token_id or 0)
    packed_logits = packed and task.head == "token-classification"
    made: dict[int, Any] = {}  # by example number, until all those before are made
    following = 0
    waiting: list[tuple[_Open, int]] = []

    def run_waiting() -> None:
        waiting.sort(key=lambda item: length_of(item[0].windows[item[1]]), reverse=True)
        for batch in _batches(waiting, tokens_per_batch):
            windows = [opened.windows[number] for opened, number in batch]
            inputs = collate([_without_answers(window) for window in windows])
            inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in inputs.items()}
            with autocast():
                outputs = model(**inputs)
            outputs = _split(outputs, windows, packed_logits)
            for (opened, number), output in zip(batch, outputs, strict=True):
                if not all(np.isfinite(array).all() for array in output.values()):
                    place = examples[opened.index].place
                    raise FloatingPointError(f"{place}: the model's outputs are not finite")
                opened.outputs[number] = output
        for opened in {id(opened): opened for opened, _ in waiting}.values():
            close(opened)
        waiting.clear()

    def close(opened: _Open) -> None:
        if opened.finished():
            example = examples[opened.index]
            outputs = [output for output in opened.outputs if output is not None]
            made[opened.index] = task.decode(example, opened.windows, outputs)

    shown = Meter("predict", len(examples), "examples") if progress else None
    with evaluation_mode(model), shown or contextlib.nullcontext():
        for index, example in enumerate(examples):
            opened = _Open(index)
            for window in task.windows(example, tokenizer):
                opened.windows.append(window)
                opened.outputs.append(None)
                waiting.append((opened, len(opened.windows) - 1))
                if len(waiting) >= _WAITING:
                    run_waiting()
            opened.all_made = True
            close(opened)  # if its last window has been run already
            if shown is not None:
                shown.add()
            while following in made:
                yield made.pop(following)
                following += 1
        run_waiting()
        yield from (made.pop(index) for index in range(following, len(examples)))


def _without_answers(window: dict) -> dict:
    answers = ("labels", "start_positions", "end_positions")
    return {key: value for key, value in window.items() if key not in answers}


def _batches(waiting: Sequence[tuple[_Open, int]], tokens_per_batch: int) -> Iterator[list]:
    """Batches of similar lengths, longest first, of at most tokens_per_batch padded tokens."""
    batch: list[tuple[_Open, int]] = []
    for item in waiting:
        longest = length_of((batch or [item])[0][0].windows[(batch or [item])[0][1]])
        if batch and longest * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _split(outputs, windows: Sequence[dict], packed_logits: bool) -> Iterator[dict]:
    """The outputs of each window as fp32 arrays, without padding."""
    names = [name for name in ("logits", "start_logits", "end_logits") if name in outputs]
    arrays = {name: outputs[name].float().cpu().numpy() for name in names}
    start = 0
    for row, window in enumerate(windows):
        end = start + length_of(window)
        if packed_logits:
            yield {name: array[start:end] for name, array in arrays.items()}
        else:  # (batch, num_labels); or (batch, seqlen, ...)
            whole = "logits" in arrays and arrays["logits"].ndim == 2
            yield {
                name: array[row] if whole else array[row, : end - start]
                for name, array in arrays.items()
            }
        start = end
