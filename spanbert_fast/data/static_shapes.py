"""Packed batches whose shapes depend on no data, for CUDA graphs and compiled steps."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from spanbert_fast.ops.span_options import SpanOptions
from spanbert_fast.values import IGNORED_TARGET


@dataclasses.dataclass(frozen=True)
class StaticShapes:
    """The sizes that `fill` gives every packed batch.

    What is added changes neither losses nor gradients. Tokens that are added come last and form
    sequences of their own, empty ones where there are none left; the spans of targets that are
    added likewise. These targets are -100, which `SpanPretrainingLoss` counts for nothing.

    Attributes:
        token_budget: word pieces of a batch: length of input_ids.
        max_seqlen: longest sequence; the batch's `max_seqlen`, whatever its own.
        max_sequences: most sequences of a batch, as for `TokenBudgetBatches`.
        mlm_capacity: masked tokens: length of mlm_positions and mlm_targets.
        span_capacity: most spans of a batch.
        target_capacity: span boundary targets: length of sbo_targets.
        max_span_targets: most targets of one span.
    """

    token_budget: int
    max_seqlen: int
    max_sequences: int
    mlm_capacity: int
    span_capacity: int
    target_capacity: int
    max_span_targets: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.token_budget < self.max_seqlen:
            raise ValueError(
                f"token_budget must be at least max_seqlen = {self.max_seqlen}, "
                f"got {self.token_budget}"
            )

    @classmethod
    def of(
        cls,
        token_budget: int,
        max_seqlen: int,
        options: SpanOptions = SpanOptions(),  # noqa: B008
        *,
        max_sequences: int | None = None,
        mlm_capacity: int | None = None,
        span_capacity: int | None = None,
        target_capacity: int | None = None,
    ) -> "StaticShapes":
        """Sizes for batches that are masked with these options.

        Args:
            options: as the collator gets them.
            max_sequences: default: four times as many as of full length.
            mlm_capacity: default: what mask_ratio can mask at most, its budget being rounded up in
                each sequence (with complete_words it may be exceeded: give more then).
            span_capacity, target_capacity: default mlm_capacity. No batch can have more, most have
                a quarter as many spans.
        """
        law = options.law()
        if max_sequences is None:
            max_sequences = 4 * -(-token_budget // max(max_seqlen, 1))
        if mlm_capacity is None:
            masked = token_budget * law.budget_numerator // law.budget_denominator
            mlm_capacity = min(masked + max_sequences, token_budget)
        return cls(
            token_budget,
            max_seqlen,
            max_sequences,
            mlm_capacity,
            mlm_capacity if span_capacity is None else span_capacity,
            mlm_capacity if target_capacity is None else target_capacity,
            law.max_span_targets,
        )

    def fill(self, batch: Mapping[str, Any], pad_token_id: int = 0) -> dict[str, Any]:
        """A packed batch of `DataCollatorForSpanMasking`, filled up, on the device it lies on.

        Args:
            pad_token_id: what the added tokens are.

        Returns:
            the batch's fields in their full sizes, and `num_tokens`, int64 0-dim, its own tokens.
            cu_seqlens has max_sequences + ceil(token_budget / max_seqlen) sequences, the spans are
            span_capacity + ceil(target_capacity / max_span_targets).

        Raises:
            ValueError: the batch has more of something than there is room for.
        """
        tokens, sequences = len(batch["input_ids"]), len(batch["cu_seqlens"]) - 1
        masked, spans = len(batch["mlm_targets"]), len(batch["span_boundaries"])
        targets = len(batch["sbo_targets"])
        for name, value in (
            ("token_budget", tokens),
            ("max_seqlen", batch["max_seqlen"]),
            ("max_sequences", sequences),
            ("mlm_capacity", masked),
            ("span_capacity", spans),
            ("target_capacity", targets),
        ):
            if value > getattr(self, name):
                raise ValueError(
                    f"{name} must be at least what the batch has, {value}, got "
                    f"{getattr(self, name)}"
                )
        all_sequences = self.max_sequences + -(-self.token_budget // self.max_seqlen)
        all_spans = self.span_capacity + -(-self.target_capacity // self.max_span_targets)
        # rows that are there and differ: equal ones would be added up one after the other
        places = torch.arange(self.mlm_capacity - masked, device=batch["input_ids"].device)
        ends = torch.arange(all_spans - spans, device=places.device)[:, None].expand(-1, 2)
        return {
            **batch,
            "input_ids": _filled(batch["input_ids"], self.token_budget, pad_token_id),
            "cu_seqlens": _continued(
                batch["cu_seqlens"], all_sequences, tokens, self.max_seqlen, self.token_budget
            ),
            "max_seqlen": self.max_seqlen,
            "mlm_positions": torch.cat([batch["mlm_positions"], places % self.token_budget]),
            "mlm_targets": _filled(batch["mlm_targets"], self.mlm_capacity, IGNORED_TARGET),
            "span_boundaries": torch.cat([batch["span_boundaries"], ends % self.token_budget]),
            "cu_span_lengths": _continued(
                batch["cu_span_lengths"],
                all_spans,
                targets,
                self.max_span_targets,
                self.target_capacity,
            ),
            "sbo_targets": _filled(batch["sbo_targets"], self.target_capacity, IGNORED_TARGET),
            "num_tokens": torch.tensor(tokens, device=places.device),
        }


class BatchSizes(NamedTuple):
    """How much one or more packed batches hold, int64 0-dim tensors on the CPU.

    Attributes:
        mlm_targets, sbo_targets: targets of the two heads.
        tokens: word pieces.
        spans: spans with targets.
    """

    mlm_targets: torch.Tensor
    sbo_targets: torch.Tensor
    tokens: torch.Tensor
    spans: torch.Tensor

    @classmethod
    def sum_of(cls, batches: Sequence[Mapping[str, Any]]) -> "BatchSizes":
        """Of all these batches."""
        return cls(*torch.stack([torch.stack(own_sizes(b)) for b in batches]).sum(0).unbind())


def own_sizes(batch: Mapping[str, Any]) -> BatchSizes:
    """What a packed batch on the CPU holds, without what `StaticShapes.fill` may have added."""
    mlm, sbo = ((batch[name] != IGNORED_TARGET).sum() for name in ("mlm_targets", "sbo_targets"))
    tokens = torch.as_tensor(batch.get("num_tokens", len(batch["input_ids"])))
    # a span has at least one target; those that were added begin where the batch's own end
    spans = (batch["cu_span_lengths"][:-1] < sbo).sum()
    return BatchSizes(mlm, sbo, tokens, spans)


def _filled(values: torch.Tensor, size: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, size - len(values)), value=value)


def _continued(
    prefix_sums: torch.Tensor, pieces: int, total: int, longest: int, end: int
) -> torch.Tensor:
    """Prefix sums of `pieces` lengths, the added ones as long as they can be until `end`."""
    added = torch.arange(1, pieces + 2 - len(prefix_sums), device=prefix_sums.device)
    sums = (total + longest * added).clamp(max=end).to(prefix_sums.dtype)
    return torch.cat([prefix_sums, sums])
