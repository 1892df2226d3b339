"""Evaluation on held-out text: both losses and accuracies, and the loss of a unigram model."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from spanbert_fast.data.blocks import BlockDataset
from spanbert_fast.data.collator import DataCollatorForSpanMasking
from spanbert_fast.meter import Meter
from spanbert_fast.models.evaluation_mode import evaluation_mode


@dataclasses.dataclass
class HeldOut:
    """Held-out blocks with fixed masks, so that two measurements differ only by the model.

    Attributes:
        dataset: blocks that training never sees.
        collator: one with packed output, and with its own seed and epoch.
        tokens_per_batch: the most tokens of one batch.
        max_tokens: measure about this many tokens, evenly sampled if the dataset has more.
    """

    dataset: BlockDataset
    collator: DataCollatorForSpanMasking
    tokens_per_batch: int
    max_tokens: int = 200_000

    def batches(self) -> Iterator[dict]:
        """The packed batches, the same at every call."""
        batch: list[dict] = []
        size = 0
        for index in self._sample():
            length = int(self.dataset.lengths[index])
            if batch and size + length > self.tokens_per_batch:
                yield self.collator(batch)
                batch, size = [], 0
            batch.append(self.dataset[(0, index)])
            size += length
        if batch:
            yield self.collator(batch)

    def num_blocks(self) -> int:
        """The number of blocks that are measured."""
        return len(self._sample())

    def _sample(self) -> list[int]:
        blocks = len(self.dataset)
        mean = float(np.mean(self.dataset.lengths))
        wanted = min(blocks, max(1, round(self.max_tokens / mean)))
        return np.linspace(0, blocks - 1, wanted).round().astype(int).tolist()


@torch.no_grad()
def held_out_losses(
    model: nn.Module,
    held_out: HeldOut,
    device: torch.device,
    *,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    rank: int = 0,
    world_size: int = 1,
    reduce: Callable | None = None,
) -> dict[str, float]:
    """Mean losses and accuracies over all held-out targets.

    Args:
        model: a SpanBertForPreTraining, or one wrapped by DDP or FSDP.
        rank, world_size: this process measures every world_size-th batch.
        reduce: adds a tensor up over the processes.

    Returns:
        mlm_loss, mlm_accuracy, sbo_loss, sbo_accuracy, and the numbers of targets mlm_count and
        sbo_count. Losses in nats.
    """
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    with evaluation_mode(model), Meter("held-out text", held_out.num_blocks(), "blocks") as meter:
        for number, batch in enumerate(held_out.batches()):
            meter.add(len(batch["cu_seqlens"]) - 1)
            if number % world_size != rank:
                continue
            batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
            with autocast():
                out = model(**batch, return_predictions=True)
            sums += torch.stack(
                [
                    out.mlm_loss.double() * out.mlm_count,
                    (out.mlm_predictions == batch["mlm_targets"]).sum().double(),
                    out.mlm_count.double(),
                    out.sbo_loss.double() * out.sbo_count,
                    (out.sbo_predictions == batch["sbo_targets"]).sum().double(),
                    out.sbo_count.double(),
                ]
            )
    if reduce is not None:
        sums = reduce(sums, "sum")
    mlm_loss, mlm_right, mlm, sbo_loss, sbo_right, sbo = sums.tolist()
    return {
        "mlm_loss": mlm_loss / max(mlm, 1),
        "mlm_accuracy": mlm_right / max(mlm, 1),
        "sbo_loss": sbo_loss / max(sbo, 1),
        "sbo_accuracy": sbo_right / max(sbo, 1),
        "mlm_count": int(mlm),
        "sbo_count": int(sbo),
    }


def unigram_cross_entropy(counts: np.ndarray, held_out: HeldOut) -> float:
    """Cross-entropy, in nats, of the training text's word-piece frequencies on the masked tokens.

    Args:
        counts: (vocab,), how often each word piece occurs in the training text; one is added to
            each, so that unseen pieces have a probability, too.
    """
    log_p = np.log(counts + 1.0) - np.log(counts.sum() + len(counts))
    targets = np.concatenate([batch["mlm_targets"].numpy() for batch in held_out.batches()])
    return float(-log_p[targets].mean())
