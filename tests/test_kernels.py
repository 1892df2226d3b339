"""Every registered function meets PyTorch's demands: schema, fakes, no aliases, tracing."""

import importlib

import pytest
import torch

from op_cases import GRADIENTS, NAMES, cases
from spanbert_fast._extension import _C
from spanbert_fast.ops._register import has_cpu_kernel
from spanbert_fast.testing import assert_bitwise_equal


def calls(name, dtype):
    """(registered function, arguments) of a case: first its forward, then its backward."""
    case = cases(dtype)[name]
    outputs = case.outputs()
    yield case.forward, tuple(case.inputs)
    if case.backward is not None:
        dresult = torch.randn(outputs[0].shape).to(outputs[0].dtype)
        yield case.backward, (dresult, *case.inputs, *case.saved(outputs))


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    for kernel, arguments in calls(name, torch.float32):
        torch.library.opcheck(kernel.op, arguments)
    for kernel, arguments in calls(name, torch.float64):
        torch.library.opcheck(kernel.composite, arguments)


@pytest.mark.skipif(_C is None, reason="needs the extension")
@pytest.mark.parametrize("name", NAMES)
def test_the_extension_has_a_kernel(name):
    for kernel, _ in calls(name, torch.float32):
        assert has_cpu_kernel(kernel.op.name().removeprefix("spanbert_fast::"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_no_bit(name, dtype):
    """The op casts its inputs under autocast, which must not round the operands of products
    inside."""
    for kernel, arguments in calls(name, dtype):
        for function in (kernel.op, kernel.composite):
            expected = function(*arguments)
            with torch.autocast("cpu", torch.bfloat16):
                found = function(*arguments)
            if isinstance(expected, torch.Tensor):
                expected, found = (expected,), (found,)
            for ours, theirs in zip(found, expected, strict=True):
                assert_bitwise_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [n for n in NAMES if cases(torch.float32)[n].backward])
def test_a_second_derivative_is_refused_and_never_left_out(name, dtype):
    """This holds for a constant gradient of the result, and for a penalty that is part of a sum."""
    case = cases(dtype)[name]
    run = getattr(importlib.import_module(f"spanbert_fast.ops.{case.op}"), f"_{case.op}")
    leaves = {
        field: getattr(case.inputs, field).requires_grad_()
        for field in GRADIENTS[case.op]
        if getattr(case.inputs, field) is not None
    }
    result = run(case.inputs._replace(**leaves))
    result = result[0] if isinstance(result, tuple) else result
    gradients = torch.autograd.grad(result.sum(), tuple(leaves.values()), create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in gradients)
    message = f"{case.op} must be differentiated once, got a second derivative"
    with pytest.raises(RuntimeError, match=message):
        (penalty + sum(leaf.sum() for leaf in leaves.values())).backward()
