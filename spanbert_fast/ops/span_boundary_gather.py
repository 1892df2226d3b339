"""`span_boundary_gather`: gather, add, GELU and LayerNorm of the span boundary head's first layer.

The layer is LN(GELU(W1 [x_l; x_r; p_k] + b1)). W1 is linear, so with W1 = [Wl Wr | Wp] its product
is a row made once per span, [Wl Wr] [x_l; x_r], plus a row made once per place, Wp p_k + b1
(contract C2). What is left for every target is to pick two rows. Its backward is two sums over the
same rows: a span's targets lie together, so its sum is a segment's.
"""

import torch
from torch.nn import functional as F

from spanbert_fast.ops import _common
from spanbert_fast.ops._cpu import register_cpu_kernel
from spanbert_fast.ops._cuda import register_cuda_kernel
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
    """y[t] = LayerNorm(GELU(spans[s] + places[k])), target t being at place k of span s.

    The first layer of the span boundary objective (Joshi et al. 2020, arXiv 1907.10529, section
    3.2), for the targets alone.

    Args:
        spans: (num_spans, hidden_size), floating: Wl x_l + Wr x_r of each span's boundaries.
        places: (max_span_targets, hidden_size), floating: Wp p_k + b1.
        cu_span_lengths: int32 (num_spans + 1,), prefix sums of the spans' target counts, from 0
            to num_targets; a count may be 0.
        num_targets: a Python int (a targets tensor's length), so that no GPU is asked for it.
        weight, bias: (hidden_size,), the norm's scale and shift.
        eps: added to the variance.

    Returns:
        (num_targets, hidden_size) in the dtype of spans (autocast's under autocast); sums, GELU and
        statistics in fp32.

    Raises:
        ValueError: shapes disagree, or (on the CPU, where looking is free) cu_span_lengths is not
            a rising sequence from 0 to num_targets, or a span has more than max_span_targets.
    """
    tensors = (("spans", spans), ("places", places), ("weight", weight), ("bias", bias))
    for name, tensor in tensors:
        _common.check_floating(name, tensor)
        _common.check_same_device(name, tensor, spans, "spans")
    _common.check_shape("spans", spans, ("num_spans", "hidden_size"))
    hidden_size = spans.shape[1]
    _common.check_shape("places", places, ("max_span_targets", hidden_size))
    _common.check_shape("weight", weight, (hidden_size,))
    _common.check_shape("bias", bias, (hidden_size,))
    _common.check_shape("cu_span_lengths", cu_span_lengths, (spans.shape[0] + 1,))
    _common.check_integer("cu_span_lengths", cu_span_lengths, (torch.int32,))
    _common.check_same_device("cu_span_lengths", cu_span_lengths, spans, "spans")
    if _common.runs_reference():
        return reference.span_boundary_gather(
            spans, places, cu_span_lengths, num_targets, weight, bias, eps=eps
        )
    dtype = _common.compute_dtype(spans)
    y, _, _ = _span_boundary_gather_fwd(
        spans.to(dtype), places.to(dtype), cu_span_lengths, num_targets, weight, bias, eps
    )
    return y


def _check_lengths(cu_span_lengths: torch.Tensor, num_targets: int, max_targets: int) -> None:
    if cu_span_lengths.device.type != "cpu":
        return
    _common.check_cu_values("cu_span_lengths", cu_span_lengths.tolist(), num_targets)
    longest = int(cu_span_lengths.diff().max()) if len(cu_span_lengths) > 1 else 0
    if longest > max_targets:
        raise ValueError(
            f"cu_span_lengths must give no span more than max_span_targets = {max_targets} "
            f"targets, got {longest}"
        )


def _span_and_place(
    cu_span_lengths: torch.Tensor, num_targets: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 (num_targets,) twice: each target's span and its place there; no host sync."""
    targets = torch.arange(num_targets, device=cu_span_lengths.device)
    starts = cu_span_lengths.long()
    # the last span that starts at or before the target: spans with no target are passed over
    span = torch.searchsorted(starts[1:], targets, right=True)
    return span, targets - starts[span]


def _sum(spans, places, span, place) -> torch.Tensor:
    opmath = _common.opmath_dtype(spans.dtype)
    return spans[span].to(opmath) + places[place].to(opmath)


def _composite_fwd(
    spans: torch.Tensor,
    places: torch.Tensor,
    cu_span_lengths: torch.Tensor,
    num_targets: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd); the statistics (num_targets, 1) are kept for the backward."""
    _check_lengths(cu_span_lengths, num_targets, places.shape[0])
    z = _sum(spans, places, *_span_and_place(cu_span_lengths, num_targets))
    y, mean, rstd = torch.native_layer_norm(
        F.gelu(z), (z.shape[1],), weight.to(z.dtype), bias.to(z.dtype), eps
    )
    return y.to(spans.dtype), mean, rstd


_span_boundary_gather_fwd = torch.library.custom_op(
    "spanbert_fast::span_boundary_gather_fwd", _composite_fwd, mutates_args=()
)
register_cpu_kernel("span_boundary_gather_fwd", _composite_fwd)
register_cuda_kernel("span_boundary_gather_fwd", _composite_fwd)


@_span_boundary_gather_fwd.register_fake
def _(spans, places, cu_span_lengths, num_targets, weight, bias, eps):
    statistics = spans.new_empty((num_targets, 1), dtype=_common.opmath_dtype(spans.dtype))
    return spans.new_empty((num_targets, spans.shape[1])), statistics, torch.empty_like(statistics)


def _composite_bwd(
    dy: torch.Tensor,
    spans: torch.Tensor,
    places: torch.Tensor,
    cu_span_lengths: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dspans, dplaces, dweight, dbias); the sums are made again rather than stored."""
    span, place = _span_and_place(cu_span_lengths, dy.shape[0])
    z = _sum(spans, places, span, place)
    dgelu, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy.to(z.dtype),
        F.gelu(z),
        (z.shape[1],),
        mean,
        rstd,
        weight.to(z.dtype),
        bias.to(z.dtype),
        [True, True, True],
    )
    dz = torch.ops.aten.gelu_backward(dgelu, z)

    def sums_by(row, table):
        # in the order of the targets on a CPU, after a sort on a GPU: deterministic on both
        sums = torch.ops.aten.embedding_dense_backward(dz, row, table.shape[0], -1, False)
        return sums.to(table.dtype)

    dspans, dplaces = sums_by(span, spans), sums_by(place, places)
    return dspans, dplaces, dweight.to(weight.dtype), dbias.to(bias.dtype)


_span_boundary_gather_bwd = torch.library.custom_op(
    "spanbert_fast::span_boundary_gather_bwd", _composite_bwd, mutates_args=()
)
register_cpu_kernel("span_boundary_gather_bwd", _composite_bwd)
register_cuda_kernel("span_boundary_gather_bwd", _composite_bwd)


@_span_boundary_gather_bwd.register_fake
def _(dy, spans, places, cu_span_lengths, weight, bias, mean, rstd):
    dspans, dplaces = spans.new_empty(spans.shape), places.new_empty(places.shape)
    return dspans, dplaces, torch.empty_like(weight), torch.empty_like(bias)


def _setup_context(ctx, inputs, output):
    spans, places, cu_span_lengths, _num_targets, weight, bias, _eps = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(spans, places, cu_span_lengths, weight, bias, mean, rstd)


def _backward(ctx, dy, _dmean, _drstd):
    if dy is None:
        return (None,) * 7
    dspans, dplaces, dweight, dbias = _span_boundary_gather_bwd(dy, *ctx.saved_tensors)
    return dspans, dplaces, None, None, dweight, dbias, None


_span_boundary_gather_fwd.register_autograd(_backward, setup_context=_setup_context)
