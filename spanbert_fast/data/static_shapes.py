"""Packed batches whose shapes do not depend on the data, for CUDA graphs and compiled steps."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from spanbert_fast.ops.span_options import SpanOptions
from spanbert_fast.values import IGNORED_TARGET


@dataclasses.dataclass(frozen=True)
class StaticShapes:
    """The sizes that `fill` gives every packed batch.

    The added elements change neither losses nor gradients. Added tokens come last and form
    sequences of their own; if none are left, added sequences are empty. Added spans do the same
    with added targets, which are -100, and `SpanPretrainingLoss` ignores them.

        >>> shapes = StaticShapes.of(token_budget=1024, max_seqlen=128)
        >>> shapes.max_sequences, shapes.mlm_capacity  # 15 % of the tokens, rounded up per sequence
        (32, 185)

    Attributes:
        token_budget: word pieces of a batch, the length of input_ids.
        max_seqlen: the longest sequence; every batch gets it as its `max_seqlen`.
        max_sequences: the most sequences of a batch, as for `TokenBudgetBatches`.
        mlm_capacity: masked tokens, the length of mlm_positions and mlm_targets.
        span_capacity: the most spans of a batch.
        target_capacity: span boundary targets, the length of sbo_targets.
        max_span_targets: the most targets of one span.
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
        """Choose sizes for batches that are masked with these options.

        Args:
            options: those of the collator.
            max_sequences: default: four times as many as sequences of full length.
            mlm_capacity: default: the most that mask_ratio can mask, with the budget of each
                sequence rounded up. complete_words may exceed it; then give more.
            span_capacity, target_capacity: default mlm_capacity. No batch can have more, and most
                have a quarter as many spans.
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
        """Fill up a packed batch of `DataCollatorForSpanMasking`, on the batch's device.

        Args:
            pad_token_id: the id of added tokens.

        Returns:
            The batch's fields in full size, and `num_tokens`, int64 0-dim, the number of its own
            tokens. cu_seqlens has max_sequences + ceil(token_budget / max_seqlen) sequences; there
            are span_capacity + ceil(target_capacity / max_span_targets) spans.

        Raises:
            ValueError: the batch has more than one of the sizes allows.
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
        # rows that exist and all differ: gradients of equal rows would be added one after the other
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
    """How much one or several packed batches hold; int64 0-dim tensors on the CPU.

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
        """The sum of several batches' sizes."""
        return cls(*torch.stack([torch.stack(own_sizes(b)) for b in batches]).sum(0).unbind())


def own_sizes(batch: Mapping[str, Any]) -> BatchSizes:
    """The sizes of a packed batch on the CPU, without what `StaticShapes.fill` has added."""
    mlm, sbo = ((batch[name] != IGNORED_TARGET).sum() for name in ("mlm_targets", "sbo_targets"))
    tokens = torch.as_tensor(batch.get("num_tokens", len(batch["input_ids"])))
    # a span has at least one target; added spans begin where the batch's own targets end
    spans = (batch["cu_span_lengths"][:-1] < sbo).sum()
    return BatchSizes(mlm, sbo, tokens, spans)


def _filled(values: torch.Tensor, size: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, size - len(values)), value=value)


def _continued(
    prefix_sums: torch.Tensor, pieces: int, total: int, longest: int, end: int
) -> torch.Tensor:
    """Prefix sums of `pieces` lengths. Added lengths are `longest` until the sum reaches `end`."""
    added = torch.arange(1, pieces + 2 - len(prefix_sums), device=prefix_sums.device)
    sums = (total + longest * added).clamp(max=end).to(prefix_sums.dtype)
    return torch.cat([prefix_sums, sums])
