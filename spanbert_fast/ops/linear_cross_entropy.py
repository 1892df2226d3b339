"""`linear_cross_entropy`: cross-entropy over a vocabulary, without ever storing all scores.

With scores S = X W^T + b and a loss per row, l_r = lse_r - S_r,target, lse_r = log sum_v exp S_rv:

    D = dl (exp(S - lse) - onehot(target))      dX = D W      dW = D^T X      db = sum_r D

The forward keeps only lse. The backward computes the scores again, tile by tile: a fourth matrix
product, where an op that computes dX and dW in its forward needs three. But dW = D^T X needs each
row's own dl before rows are summed, and the forward does not know it. Therefore any reduction,
denominator or loss scale may follow this op, and nothing as large as W lives from forward to
backward. On a CPU, where the fourth product is a quarter of the time, the forward also keeps the
scores of as many columns as fit a fixed amount of memory, and the backward computes only the rest.

The outer loop goes over the vocabulary. Each block of W is read and cast once; when the loop leaves
a block, its dW is complete and has been written once.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from spanbert_fast._extension import _C
from spanbert_fast.ops import _checks
from spanbert_fast.ops._autograd import differentiable
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._precision import compute_dtype, opmath_dtype, product_dtype
from spanbert_fast.ops._register import register
from spanbert_fast.reference import linear_cross_entropy as reference

# Scores in one tile: 8 MB in fp32. Beside the gradients, the op needs a handful of such tensors.
_TILE_ELEMENTS = 1 << 21
_TILE_ROWS = 4096
_TILE_COLUMNS = 256  # at least: narrower products are slow

# The most bytes of scores that a compiled forward keeps for its backward. They lie in whole huge
# pages, which takes a few MB more.
_SCORE_BYTES = 38_000_000
_SCORE_COLUMNS = 256  # columns of one task of a compiled forward (kMostScoreColumns)


class LinearCrossEntropy(NamedTuple):
    """What `linear_cross_entropy` returns.

    Attributes:
        losses: (rows,), each row's cross-entropy, never negative; fp32 (fp64 for fp64).
        predictions: int64 (rows,), the entry with the highest score, the first of equal ones; None
            unless asked for.
    """

    losses: torch.Tensor
    predictions: torch.Tensor | None


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    *,
    group_sizes: Sequence[int] | None = None,
    return_predictions: bool = False,
) -> LinearCrossEntropy:
    """-log softmax(hidden weight^T + bias)[target] of every row.

        >>> hidden, weight, targets = torch.eye(2), torch.zeros(3, 2), torch.tensor([0, 2])
        >>> linear_cross_entropy(hidden, weight, torch.zeros(3), targets).losses
        tensor([1.0986, 1.0986])

    With `group_sizes`, several groups of rows share one weight and have a bias each: the masked-LM
    rows and the span boundary rows over the tied decoder. They get one common dW.

    Args:
        hidden: (rows, hidden_size), floating.
        weight: (vocab_size, hidden_size), floating; may be of a wider dtype than hidden, and then
            its gradient is, too.
        bias: (vocab_size,); or (num_groups, vocab_size) with group_sizes.
        targets: int64 (rows,), in [0, vocab_size).
        group_sizes: the number of rows of each group; groups lie one behind the other.
        return_predictions: also return each row's best entry.

    Returns:
        Losses (differentiable, each row with its own upstream gradient) and predictions. Products
        use hidden's dtype (autocast's under autocast), or fp32 on a CPU that multiplies fp32
        faster. Softmax and all sums over tiles are fp32. A GPU does not check the targets: one that
        is out of range gives NaN.

    Raises:
        ValueError: shapes disagree, or a target is out of range (checked on the CPU only).
    """
    tensors = (("hidden", hidden), ("weight", weight), ("bias", bias))
    for name, tensor in tensors:
        _checks.check_floating(name, tensor)
        _checks.check_same_device(name, tensor, hidden, "hidden")
    _checks.check_shape("hidden", hidden, ("rows", "hidden_size"))
    _checks.check_shape("weight", weight, ("vocab_size", hidden.shape[1]))
    _checks.check_shape("targets", targets, (hidden.shape[0],))
    _checks.check_integer("targets", targets, (torch.int64,))
    _checks.check_same_device("targets", targets, hidden, "hidden")
    if group_sizes is None:
        _checks.check_shape("bias", bias, (weight.shape[0],))
    else:
        _checks.check_shape("bias", bias, (len(group_sizes), weight.shape[0]))
        _checks.check_group_sizes(group_sizes, hidden.shape[0])
    if runs_reference():
        losses, predictions = reference.linear_cross_entropy(
            hidden, weight, bias, targets, group_sizes=group_sizes
        )
        return LinearCrossEntropy(losses, predictions if return_predictions else None)
    dtype = compute_dtype(hidden)
    if _runs_compiled(hidden):
        dtype = product_dtype(dtype, hidden.device)
    hidden = hidden.to(dtype)
    losses, predictions = _linear_cross_entropy(
        LossInputs(
            hidden,
            weight,
            bias.unsqueeze(0) if group_sizes is None else bias,
            targets,
            [hidden.shape[0]] if group_sizes is None else list(group_sizes),
            return_predictions,
            _saved_columns(hidden, weight, bias),
        )
    )
    return LinearCrossEntropy(losses, predictions if return_predictions else None)


class LossInputs(NamedTuple):
    """The arguments of the registered functions.

    saved_columns: the columns whose scores a compiled forward saves for the backward.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    targets: torch.Tensor
    group_sizes: list[int]
    with_predictions: bool
    saved_columns: int


def _runs_compiled(*tensors: torch.Tensor) -> bool:
    return _C is not None and all(
        t.device.type == "cpu" and t.dtype != torch.float64 for t in tensors
    )


def _saved_columns(hidden: torch.Tensor, *parameters: torch.Tensor) -> int:
    """The number of columns whose scores the forward keeps for the backward."""
    tensors = (hidden, *parameters)
    differentiates = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not (differentiates and _runs_compiled(*tensors)):
        return 0
    fitting = _SCORE_BYTES // (hidden.element_size() * max(1, hidden.shape[0]))
    return min(parameters[0].shape[0], fitting // _SCORE_COLUMNS * _SCORE_COLUMNS)


def _tiles(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _column_tiles(rows: int, vocab_size: int) -> Iterator[slice]:
    size = _TILE_ELEMENTS // max(1, min(rows, _TILE_ROWS))
    return _tiles(vocab_size, max(_TILE_COLUMNS, size // 64 * 64))  # rows that start aligned


def _row_tiles(group_sizes: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """(group, rows): tiles of rows that share a bias."""
    start = 0
    for group, size in enumerate(group_sizes):
        for tile in _tiles(size, _TILE_ROWS):
            yield group, slice(start + tile.start, start + tile.stop)
        start += size


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in the dtype of sums. A GPU gives its accumulators; a CPU rounds to a's dtype first."""
    opmath = opmath_dtype(a.dtype)
    if a.is_cuda and a.dtype != opmath:
        return torch.mm(a, b, out_dtype=opmath)
    return (a @ b).to(opmath)


def _locate(targets: torch.Tensor, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Each target's place among `columns`, and whether it is one of them (if not, the place means
    nothing)."""
    inside = (targets >= columns.start) & (targets < columns.stop)
    return torch.where(inside, targets - columns.start, 0), inside


def _check_composite(inputs: LossInputs) -> None:
    """Raise unless the shapes agree; tiles of what is not there would be counted for hours."""
    rows, width = inputs.hidden.shape
    _checks.check_group_sizes(inputs.group_sizes, rows)
    _checks.check_shape("weight", inputs.weight, (inputs.weight.shape[0], width))
    _checks.check_shape("bias", inputs.bias, (len(inputs.group_sizes), inputs.weight.shape[0]))
    _checks.check_shape("targets", inputs.targets, (rows,))


def _composite_fwd(
    inputs: LossInputs,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(losses, predictions, lse, saved); predictions are (0,) where not asked for.

    lse: (2, rows), two numbers whose sum is lse. A compiled forward keeps each row's largest score
        and the log of the remaining sum apart, since adding them would round digits away.
    saved: (rows, saved_columns) in the dtype of hidden, X W^T of the first columns; this composite
        saves none, (rows, 0).
    """
    hidden, weight, bias, targets, group_sizes, with_predictions, _ = inputs
    _check_composite(inputs)
    _checks.check_ids("targets", targets, weight.shape[0])
    rows, opmath = hidden.shape[0], opmath_dtype(hidden.dtype)
    lse = hidden.new_full((rows,), -torch.inf, dtype=opmath)
    best = lse.clone()
    target_scores = torch.full_like(lse, torch.nan)
    predictions = targets.new_zeros(rows if with_predictions else 0)
    for columns in _column_tiles(rows, weight.shape[0]) if rows else ():
        w, b = weight[columns].to(hidden.dtype), bias[:, columns].to(opmath)
        for group, tile in _row_tiles(group_sizes):
            scores = _product(hidden[tile], w.t()).add_(b[group])
            lse[tile] = torch.logaddexp(lse[tile], scores.logsumexp(1))
            place, inside = _locate(targets[tile], columns)
            score = scores.gather(1, place[:, None]).squeeze(1)
            target_scores[tile] = torch.where(inside, score, target_scores[tile])
            if with_predictions:
                score, place = scores.max(1)
                better = score > best[tile]
                best[tile] = torch.where(better, score, best[tile])
                predictions[tile] = torch.where(better, place + columns.start, predictions[tile])
    parts = torch.stack((lse, torch.zeros_like(lse)))
    return lse - target_scores, predictions, parts, hidden.new_empty((rows, 0))


def _composite_bwd(
    dlosses: torch.Tensor, inputs: LossInputs, lse: torch.Tensor, saved: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dhidden, dweight, dbias), summed in fp32."""
    hidden, weight, bias, targets, group_sizes, *_ = inputs
    _check_composite(inputs)
    _checks.check_shape("dlosses", dlosses, (hidden.shape[0],))
    _checks.check_shape("lse", lse, (2, hidden.shape[0]))
    lse = lse.sum(0)
    dhidden = torch.zeros_like(hidden, dtype=lse.dtype)
    dweight, dbias = weight.new_empty(weight.shape), torch.zeros_like(bias, dtype=lse.dtype)
    for columns in _column_tiles(hidden.shape[0], weight.shape[0]):
        w, b = weight[columns].to(hidden.dtype), bias[:, columns].to(lse.dtype)
        dw = torch.zeros_like(w, dtype=lse.dtype)
        for group, tile in _row_tiles(group_sizes):
            scores = _product(hidden[tile], w.t()).add_(b[group])
            d = scores.sub_(lse[tile, None]).exp_()
            place, inside = _locate(targets[tile], columns)
            d[torch.arange(len(d), device=d.device), place] -= inside.to(d.dtype)
            d *= dlosses[tile, None]
            dbias[group, columns] += d.sum(0)
            d = d.to(hidden.dtype)
            dhidden[tile] += _product(d, w)
            dw += _product(d.t(), hidden[tile])
        dweight[columns] = dw.to(weight.dtype)
    return dhidden.to(hidden.dtype), dweight, dbias.to(bias.dtype)


def _fake_fwd(inputs: LossInputs):
    hidden, rows = inputs.hidden, inputs.hidden.shape[0]
    losses = hidden.new_empty((rows,), dtype=opmath_dtype(hidden.dtype))
    predictions = inputs.targets.new_empty((rows if inputs.with_predictions else 0,))
    saved = hidden.new_empty((rows, inputs.saved_columns))
    return losses, predictions, losses.new_empty((2, rows)), saved


def _fake_bwd(dlosses, inputs: LossInputs, lse, saved):
    return tuple(t.new_empty(t.shape) for t in (inputs.hidden, inputs.weight, inputs.bias))


_linear_cross_entropy = differentiable(
    LossInputs,
    register("linear_cross_entropy_fwd", _composite_fwd, _fake_fwd),
    register("linear_cross_entropy_bwd", _composite_bwd, _fake_bwd),
    gradients=("hidden", "weight", "bias"),
    results=2,
)
