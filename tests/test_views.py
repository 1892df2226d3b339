"""Every registered function takes tensors of any strides, with the same result as for copies."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import spanbert_fast
import spanbert_fast.kernels
from op_cases import GRADIENTS, NAMES, REFERENCES, Case, cases
from search_path import search_path
from spanbert_fast import use_backend
from spanbert_fast._extension import _C
from spanbert_fast.ops._register import KERNELS
from spanbert_fast.ops.varlen_attention import varlen_attention
from spanbert_fast.testing import assert_bitwise_equal

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
PACKAGE = Path(spanbert_fast.__file__).parent
# in a checkout, a folder beside the package
TRITON_KERNELS = Path(spanbert_fast.kernels.__file__).parent


def poison(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A value that shows when it is read: NaN, or 2^30 for integers, which is in no range."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else 1 << 30, dtype=dtype)


def views_of(x: torch.Tensor, fixed: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Views that are not contiguous, with the same values; or expanded, except those in `fixed`."""
    yield "contiguous", x.clone()
    if x.dim() == 0:
        return
    if x.dim() > 1:
        backwards = tuple(reversed(range(x.dim())))
        yield "permuted", x.permute(backwards).contiguous().permute(backwards)
    if x.dtype == torch.bool:
        around = torch.zeros([2 * size + 3 for size in x.shape], dtype=torch.bool)
    else:
        around = poison(tuple(2 * size + 3 for size in x.shape), x.dtype)
    every_other = around[tuple(slice(1, 1 + 2 * size, 2) for size in x.shape)]
    yield "every other element", every_other.copy_(x)
    if fixed or x.numel() == 0:
        return
    yield "one row for all", x[:1].expand_as(x)
    yield "one element for each row", x[..., :1].expand_as(x)
    yield "one element", x.flatten()[:1].view((1,) * x.dim()).expand_as(x)


def copied(arguments):
    """The same values as contiguous copies."""
    return [a.contiguous().clone() if isinstance(a, torch.Tensor) else a for a in arguments]


def assert_same(ours, copies, exact: bool, what: str) -> None:
    for k, (a, b) in enumerate(zip(ours, copies, strict=True)):
        if exact:
            assert_bitwise_equal(a, b, f"output {k} of {what}")
        else:  # PyTorch's operators may take another path, with other roundings
            assert a.dtype == b.dtype
            assert_near(a, b.double(), a.dtype, f"output {k} of {what}")


def widened(inputs):
    values = [
        a.detach().double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in inputs
    ]
    return type(inputs)(*values)


def assert_near(ours, truth, dtype: torch.dtype, what: str) -> None:
    """Equal up to rounding; each op's own tests bound its error."""
    if truth.numel() == 0:
        return
    if not dtype.is_floating_point:
        dtype = torch.float64  # integers must be equal
    ours = ours.double()
    infinite = truth.isinf()
    assert torch.equal(ours.isinf(), infinite), what
    assert torch.equal(ours[infinite], truth[infinite]), what  # infinities of the same sign
    ours, truth = ours[~infinite], truth[~infinite]
    if truth.numel() == 0:
        return
    size = max(1.0, truth.abs().max().item())
    error = (ours - truth).abs().max().item()
    assert error <= 64 * torch.finfo(dtype).eps * size, (what, error, size)


def check(case: Case, inputs: tuple, dtype: torch.dtype, exact: bool, what: str) -> None:
    """Compare forward and backward of `inputs` with those of copies and of the reference."""
    outputs = case.outputs(inputs)
    assert_same(outputs, case.outputs(copied(inputs)), exact, what)
    if case.op not in REFERENCES:
        return
    truth_inputs = widened(inputs)
    names = [n for n in GRADIENTS.get(case.op, ()) if getattr(inputs, n) is not None]
    leaves = [getattr(truth_inputs, n).requires_grad_() for n in names]
    truth = REFERENCES[case.op](truth_inputs)
    assert_near(outputs[0], truth.detach(), dtype, what)
    if case.backward is None:
        return
    saved = case.saved(outputs)
    dresult = torch.randn(outputs[0].shape).to(outputs[0].dtype)
    gradients = case.backward(dresult, *inputs, *saved)
    assert_same(gradients, case.backward(*copied((dresult, *inputs, *saved))), exact, what)
    expected = dict(zip(names, torch.autograd.grad(truth, leaves, dresult.double()), strict=True))
    for name, gradient in zip(GRADIENTS[case.op], gradients, strict=True):
        if name in expected:
            assert_near(gradient, expected[name], dtype, f"d{name} of {what}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_views_of_each_input(name, dtype):
    case = cases(dtype)[name]
    exact = dtype != torch.float64 and _C is not None
    for field, value in case.inputs._asdict().items():
        if not isinstance(value, torch.Tensor):
            continue
        for kind, view in views_of(value, field in case.fixed):
            inputs = case.inputs._replace(**{field: view})
            check(case, inputs, dtype, exact, f"{field}, {kind}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [n for n in NAMES if cases(torch.float32)[n].backward])
def test_views_of_what_the_backward_takes(name, dtype):
    """The result's gradient, and the tensors saved by the forward."""
    case = cases(dtype)[name]
    exact = dtype != torch.float64 and _C is not None
    outputs = case.outputs()
    dresult = torch.randn(outputs[0].shape).to(outputs[0].dtype)
    arguments = [dresult, *case.inputs, *case.saved(outputs)]
    inputs = range(1, 1 + len(case.inputs))
    for place, value in enumerate(arguments):
        if place in inputs:
            continue
        for kind, view in views_of(value, fixed=False):
            changed = [*arguments[:place], view, *arguments[place + 1 :]]
            gradients = case.backward(*changed)
            what = f"argument {place} of the backward, {kind}"
            assert_same(gradients, case.backward(*copied(changed)), exact, what)


def test_every_registered_function_has_a_case():
    named = {case.op for case in cases(torch.float32).values()}
    wanted = {name.removesuffix("_fwd").removesuffix("_bwd") for name in KERNELS}
    assert named == wanted


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_expanded_heads_of_attention(dtype):
    """PyTorch's flash attention would read them as if they were contiguous, far beyond their two
    elements."""
    x = torch.randn(2, 1, 1, dtype=dtype).expand(2, 1, 64)
    cu_seqlens = torch.tensor([0, 2], dtype=torch.int32)
    got = varlen_attention(x, x, x, cu_seqlens, 2)
    assert_bitwise_equal(got, varlen_attention(*[x.contiguous()] * 3, cu_seqlens, 2))
    with use_backend("reference"):
        torch.testing.assert_close(got, varlen_attention(x, x, x, cu_seqlens, 2))


@pytest.mark.skipif(_C is None, reason="this is such a process")
def test_without_the_extension(tmp_path):
    """These tests with PyTorch's operators, in a process whose copy has no compiled code."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "spanbert_fast", ignore=ignored)
    copied = tmp_path / "spanbert_fast/kernels"
    shutil.copytree(TRITON_KERNELS, copied, ignore=ignored, dirs_exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "PYTHONPATH": search_path(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "installed without its compiled extension" in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= 15
