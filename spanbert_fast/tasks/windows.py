"""Makes batches from a task's windows: packed for our models, padded for others."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from spanbert_fast.tasks.base import Example, Task

_IGNORED = -100  # transformers' label for positions without a loss


def length_of(window: dict) -> int:
    """The number of word pieces of a window."""
    return len(window["input_ids"])


class WindowDataset(Dataset):
    """All windows of a training set in memory, each list an int32 array."""

    def __init__(self, task: Task, examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase):
        self.windows = [
            {
                key: np.asarray(value, np.int32) if isinstance(value, list) else value
                for key, value in window.items()
                if not key.startswith("_")
            }
            for example in examples
            for window in task.windows(example, tokenizer)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict:
        return self.windows[index]

    def tokens(self) -> int:
        """The number of word pieces of all windows."""
        return sum(map(length_of, self.windows))


class WindowCollator:
    """Makes one batch from windows.

    Args:
        packed: packed (total_tokens,) tensors with cu_seqlens and max_seqlen; else padded ones,
            (batch, seqlen), with an attention_mask.
        pad_token_id: fills input_ids where there is no token.
    """

    def __init__(self, packed: bool, pad_token_id: int = 0):
        self.packed = packed
        self.pad_token_id = pad_token_id

    def __call__(self, windows: Sequence[dict]) -> dict[str, torch.Tensor | int]:
        lengths = torch.tensor([length_of(window) for window in windows])
        longest = int(lengths.max())
        batch: dict[str, torch.Tensor | int] = {}
        if self.packed:
            batch["cu_seqlens"] = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
            batch["max_seqlen"] = longest
        else:
            batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        for key, first in windows[0].items():
            if key.startswith("_"):
                continue
            values = [window[key] for window in windows]
            if np.ndim(first) == 0:
                kind = torch.float32 if isinstance(first, float) else torch.int64
                batch[key] = torch.tensor(values, dtype=kind)
            else:
                filler = {"input_ids": self.pad_token_id, "labels": _IGNORED}.get(key, 0)
                batch[key] = self._joined(values, lengths, longest, filler)
        return batch

    def _joined(self, values: list, lengths, longest: int, filler: int) -> torch.Tensor:
        flat = torch.from_numpy(np.concatenate([np.asarray(v, np.int64) for v in values]))
        if self.packed:
            return flat
        padded = torch.full((len(values), longest), filler)
        padded[torch.arange(longest) < lengths[:, None]] = flat
        return padded
