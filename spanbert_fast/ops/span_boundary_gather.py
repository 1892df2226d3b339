"""`span_boundary_gather`: gather, add, GELU and LayerNorm of the span boundary head's first layer.

The layer is LN(GELU(W1 [x_l; x_r; p_k] + b1)). W1 is linear. With W1 = [Wl Wr | Wp], its product is
the sum of a row per span, [Wl Wr] [x_l; x_r], and a row per place, Wp p_k + b1 (contract C2). This
op gathers the two rows of each target and adds them. Its backward sums the targets' gradients
twice: over each span, whose targets are contiguous, and over each place.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from spanbert_fast.ops import _checks
from spanbert_fast.ops._autograd import differentiable
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._precision import compute_dtype, opmath_dtype
from spanbert_fast.ops._register import register
from spanbert_fast.reference import span_boundary_gather as reference


def span_boundary_gather(
    spans: torch.Tensor,
    places: torch.Tensor,
    cu_span_lengths: torch.Tensor,
    num_targets: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    eps: float = 1e-12,
) -> torch.Tensor:
    """y[t] = LayerNorm(GELU(spans[s] + places[k])), where target t is at place k of span s.

        >>> spans, places = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.zeros(3, 2)
        >>> cu_span_lengths = torch.tensor([0, 1, 3], dtype=torch.int32)  # of 1 and 2 targets
        >>> span_boundary_gather(spans, places, cu_span_lengths, 3, torch.ones(2), torch.zeros(2))
        tensor([[ 1., -1.],
                [-1.,  1.],
                [-1.,  1.]])

    The first layer of the span boundary objective (Joshi et al. 2020, arXiv 1907.10529, section
    3.2), computed for existing targets only.

    Args:
        spans: (num_spans, hidden_size), floating: Wl x_l + Wr x_r of each span's boundaries.
        places: (max_span_targets, hidden_size), floating: Wp p_k + b1.
        cu_span_lengths: int32 (num_spans + 1,), prefix sums of the spans' target counts, from 0
            to num_targets; a count may be 0.
        num_targets: the number of targets, a Python int so that the host need not wait for a GPU.
        weight, bias: (hidden_size,), the norm's scale and shift.
        eps: added to the variance.

    Returns:
        (num_targets, hidden_size) in the dtype of spans (autocast's under autocast); sums, GELU and
        statistics in fp32.

    Raises:
        ValueError: shapes disagree; or, checked on the CPU only, cu_span_lengths falls or does not
            run from 0 to num_targets, or a span has more than max_span_targets targets.
    """
    tensors = (("spans", spans), ("places", places), ("weight", weight), ("bias", bias))
    for name, tensor in tensors:
        _checks.check_floating(name, tensor)
        _checks.check_same_device(name, tensor, spans, "spans")
    _checks.check_shape("spans", spans, ("num_spans", "hidden_size"))
    hidden_size = spans.shape[1]
    _checks.check_shape("places", places, ("max_span_targets", hidden_size))
    _checks.check_shape("weight", weight, (hidden_size,))
    _checks.check_shape("bias", bias, (hidden_size,))
    _checks.check_shape("cu_span_lengths", cu_span_lengths, (spans.shape[0] + 1,))
    _checks.check_integer("cu_span_lengths", cu_span_lengths, (torch.int32,))
    _checks.check_same_device("cu_span_lengths", cu_span_lengths, spans, "spans")
    if runs_reference():
        return reference.span_boundary_gather(
            spans, places, cu_span_lengths, num_targets, weight, bias, eps=eps
        )
    dtype = compute_dtype(spans)
    spans, places = spans.to(dtype), places.to(dtype)
    return _span_boundary_gather(
        GatherInputs(spans, places, cu_span_lengths, num_targets, weight, bias, eps)
    )


class GatherInputs(NamedTuple):
    """The arguments of the registered functions."""

    spans: torch.Tensor
    places: torch.Tensor
    cu_span_lengths: torch.Tensor
    num_targets: int
    weight: torch.Tensor
    bias: torch.Tensor
    eps: float


def _check_lengths(cu_span_lengths: torch.Tensor, num_targets: int, max_targets: int) -> None:
    if cu_span_lengths.device.type != "cpu":
        return
    _checks.check_cu_values("cu_span_lengths", cu_span_lengths.tolist(), num_targets)
    longest = int(cu_span_lengths.diff().max()) if len(cu_span_lengths) > 1 else 0
    if longest > max_targets:
        raise ValueError(
            f"cu_span_lengths must give no span more than max_span_targets = {max_targets} "
            f"targets, got {longest}"
        )


def _span_and_place(
    cu_span_lengths: torch.Tensor, num_targets: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two int64 (num_targets,): each target's span, and its place there; no host sync."""
    targets = torch.arange(num_targets, device=cu_span_lengths.device)
    starts = cu_span_lengths.long()
    # the last span that starts at or before the target; this skips spans without targets
    span = torch.searchsorted(starts[1:], targets, right=True)
    return span, targets - starts[span]


def _sum(inputs: GatherInputs, span: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    opmath = opmath_dtype(inputs.spans.dtype)
    return inputs.spans[span].to(opmath) + inputs.places[place].to(opmath)


def _composite_fwd(
    inputs: GatherInputs,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd); the statistics (num_targets, 1) are kept for the backward."""
    _check_lengths(inputs.cu_span_lengths, inputs.num_targets, inputs.places.shape[0])
    z = _sum(inputs, *_span_and_place(inputs.cu_span_lengths, inputs.num_targets))
    weight, bias = inputs.weight.to(z.dtype), inputs.bias.to(z.dtype)
    y, mean, rstd = torch.native_layer_norm(F.gelu(z), (z.shape[1],), weight, bias, inputs.eps)
    return y.to(inputs.spans.dtype), mean, rstd


def _composite_bwd(
    dy: torch.Tensor, inputs: GatherInputs, mean: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dspans, dplaces, dweight, dbias); the sums are computed again rather than stored."""
    _check_lengths(inputs.cu_span_lengths, inputs.num_targets, inputs.places.shape[0])
    span, place = _span_and_place(inputs.cu_span_lengths, inputs.num_targets)
    z = _sum(inputs, span, place)
    _checks.check_norm_saved(dy, mean, rstd, z)
    weight, bias = inputs.weight.to(z.dtype), inputs.bias.to(z.dtype)
    # PyTorch's kernel assumes that both are contiguous
    mean, rstd = mean.contiguous(), rstd.contiguous()
    dgelu, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy.to(z.dtype), F.gelu(z), (z.shape[1],), mean, rstd, weight, bias, [True, True, True]
    )
    dz = torch.ops.aten.gelu_backward(dgelu, z)

    def sums_by(row, table):
        # in the order of the targets on a CPU, after a sort on a GPU: deterministic on both
        sums = torch.ops.aten.embedding_dense_backward(dz, row, table.shape[0], -1, False)
        return sums.to(table.dtype)

    return (
        sums_by(span, inputs.spans),
        sums_by(place, inputs.places),
        dweight.to(inputs.weight.dtype),
        dbias.to(inputs.bias.dtype),
    )


def _fake_fwd(inputs: GatherInputs):
    spans, targets = inputs.spans, inputs.num_targets
    statistics = spans.new_empty((targets, 1), dtype=opmath_dtype(spans.dtype))
    return spans.new_empty((targets, spans.shape[1])), statistics, torch.empty_like(statistics)


def _fake_bwd(dy, inputs: GatherInputs, mean, rstd):
    spans, places, _, _, weight, bias, _ = inputs
    return tuple(t.new_empty(t.shape) for t in (spans, places, weight, bias))


_span_boundary_gather = differentiable(
    GatherInputs,
    register("span_boundary_gather_fwd", _composite_fwd, _fake_fwd),
    register("span_boundary_gather_bwd", _composite_bwd, _fake_bwd),
    gradients=("spans", "places", "weight", "bias"),
)
