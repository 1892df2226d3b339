"""The targets of the pre-training heads, and what their sums of losses are divided by."""

from typing import NamedTuple

import torch


class SpanTargets(NamedTuple):
    """The masked tokens and the masked spans of a batch, as rows of hidden states.

    Attributes:
        mlm_positions, mlm_targets: int64 (num_masked,), the masked rows and their original tokens.
        span_boundaries: int64 (num_spans, 2), the rows left and right of each span.
        cu_span_lengths: int32 (num_spans + 1,), prefix sums of the spans' target counts.
        sbo_targets: int64 (num_targets,), the tokens of the spans, one span after the other. A
            target of -100, of either kind, is ignored.
    """

    mlm_positions: torch.Tensor
    mlm_targets: torch.Tensor
    span_boundaries: torch.Tensor
    cu_span_lengths: torch.Tensor
    sbo_targets: torch.Tensor

    def rows(self) -> torch.Tensor:
        """Every row that a head reads: first the masked tokens, then the boundaries."""
        return torch.cat([self.mlm_positions, self.span_boundaries.flatten()])

    def on_rows(self) -> "SpanTargets":
        """The same targets, with positions that number the rows of `rows()`."""
        masked, spans = self.mlm_positions.shape[0], self.span_boundaries.shape[0]
        numbers = torch.arange(masked + 2 * spans, device=self.mlm_positions.device)
        return self._replace(
            mlm_positions=numbers[:masked], span_boundaries=numbers[masked:].view(spans, 2)
        )


class Denominators(NamedTuple):
    """What the sums of losses are divided by, if a batch is part of a larger one. Each is a number
    or a 0-dim tensor; None stands for this batch's own count.

    Attributes:
        mlm, sbo: targets of the global batch.
        pair: tokens of the global batch.
    """

    mlm: torch.Tensor | float | None = None
    sbo: torch.Tensor | float | None = None
    pair: torch.Tensor | float | None = None
