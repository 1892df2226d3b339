"""linears: several linear layers of one input as one function, as a GPU computes them."""

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from spanbert_fast import use_backend
from spanbert_fast.nn import PackedSelfAttention
from spanbert_fast.ops import linear as op
from spanbert_fast.ops.linear import linears
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OUT = (33, 8, 17)


@pytest.fixture(autouse=True)
def joined(monkeypatch):
    """Compute on this CPU as on a GPU."""
    monkeypatch.setattr(op, "_joins", lambda device: True)


def make(shape, dtype):
    """x, three weights, three biases of which the second is missing."""
    x = torch.randn(shape).to(dtype)
    weights = [torch.randn(n, shape[-1]).to(dtype) for n in OUT]
    biases = [torch.randn(n).to(dtype) for n in OUT]
    return [x, *weights, biases[0], None, biases[2]]


def separate(x, *parameters):
    return tuple(F.linear(x, w, b) for w, b in zip(parameters[:3], parameters[3:], strict=True))


def joint(x, *parameters):
    return linears(x, parameters[:3], parameters[3:])


def run(function, tensors, gradients, autocast=None):
    """The results and the gradients of all tensors that are there."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        results = function(*leaves)
    given = [g.to(y.dtype) for g, y in zip(gradients, results, strict=True)]
    torch.autograd.backward(results, given)
    return [*(y.detach() for y in results), *(leaf.grad for leaf in leaves if leaf is not None)]


def upstream(shape):
    return [torch.randn(*shape[:-1], n) for n in OUT]


def assert_within_c5(ours, peer, truth, dtype):
    for number, (a, b, c) in enumerate(zip(ours, peer, truth, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape
        # The peer may be exact by luck: one rounding of the largest value, and fp32 sums of up to
        # 130 products of that size.
        largest = c.abs().max().item() if c.numel() else 0.0
        floor = (torch.finfo(dtype).eps + 16 * torch.finfo(torch.float32).eps) * largest
        assert_no_worse_than(a, b, c, floor=floor, name=f"tensor {number}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (130, 67), (2, 5, 64), (64,)])
def test_no_worse_than_pytorch(shape, dtype):
    tensors, gradients = make(shape, dtype), upstream(shape)
    truth = run(separate, [None if t is None else t.double() for t in tensors], gradients)
    ours, peer = (run(function, tensors, gradients) for function in (joint, separate))
    assert_within_c5(ours, peer, truth, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", DTYPES)
def test_under_autocast(given, dtype):
    """Inputs have autocast's dtype or fp32, and parameters fp32; each gets its gradient's dtype."""
    tensors, gradients = make((40, 64), torch.float32), upstream((40, 64))
    tensors[0] = tensors[0].to(given)
    truth = run(separate, [None if t is None else t.double() for t in tensors], gradients)
    ours, peer = (run(function, tensors, gradients, dtype) for function in (joint, separate))
    assert_within_c5(ours, peer, truth, dtype)


class Calls(TorchDispatchMode):
    """Counts the operators that run, and the casts of tensors of a shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.casts, self.names = shape, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        self.names.append(name)
        self.casts += name == "_to_copy" and tuple(args[0].shape) == self.shape
        return function(*args, **(kwargs or {}))


def test_x_is_cast_once_and_its_gradient_added_by_the_products():
    tensors, gradients = make((40, 64), torch.float32), upstream((40, 64))
    counts = {}
    for function in (joint, separate):
        with Calls((40, 64)) as calls:
            # what is no leaf is not kept by autocast: the hidden states of a layer
            run(lambda x, *rest, f=function: f(x * 1, *rest), tensors, gradients, torch.bfloat16)
        adds = sum(name in ("add", "add_") for name in calls.names)
        counts[function] = (calls.casts, adds, calls.names.count("addmm_"))
    assert counts[joint] == (2, 0, 2)  # casts: x, and its gradient back to fp32
    assert counts[separate] == (6, 2, 0)


def test_only_what_needs_a_gradient_is_computed():
    x, *parameters = make((6, 8), torch.float32)
    for needed, products in (((0,), 3), ((1,), 1), ((1, 3), 2), ((4,), 0), ((0, 2), 4)):
        leaves = [t if t is None else t.detach().clone() for t in (x, *parameters)]
        for k in needed:
            leaves[k].requires_grad_()
        results = joint(*leaves)
        with Calls((6, 8)) as calls:
            torch.autograd.backward(results, [torch.ones_like(y) for y in results])
        assert sum(name in ("mm", "addmm_") for name in calls.names) == products, needed
        assert [k for k, t in enumerate(leaves) if t is not None and t.grad is not None] == [
            *needed
        ]


def test_a_result_that_no_loss_reads():
    leaves = [t if t is None else t.requires_grad_() for t in make((6, 8), torch.double)]
    _, middle, _ = joint(*leaves)
    x, *others = leaves
    dx, dweight = torch.autograd.grad(middle.sum(), (x, others[1]))
    torch.testing.assert_close(dx, others[1].detach().sum(0).expand(6, 8))
    torch.testing.assert_close(dweight, x.detach().sum(0).expand(8, 8))


def test_first_and_second_derivatives():
    leaves = [t if t is None else t.requires_grad_() for t in make((3, 4), torch.double)]
    present = [t for t in leaves if t is not None]

    def function(*present):
        return joint(*present[:5], None, present[5])

    assert torch.autograd.gradcheck(function, present)
    assert torch.autograd.gradgradcheck(function, present)


def test_second_derivatives_under_autocast():
    """A penalty on dx is a function of the weights, whose casts the first backward has kept."""
    x, *parameters = make((6, 8), torch.float32)

    def penalty(function, dtype, autocast):
        leaves = [None if t is None else t.to(dtype).requires_grad_() for t in (x, *parameters)]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results = function(*leaves)
        total = sum(y.to(dtype).sin().sum() for y in results)
        (dx,) = torch.autograd.grad(total, leaves[0], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaves[:4])

    ours, theirs = (penalty(f, torch.float32, True) for f in (joint, separate))
    for a, b, c in zip(ours, theirs, penalty(separate, torch.double, False), strict=True):
        # the peer may be exact by luck: some roundings of the largest value
        floor = 4 * torch.finfo(torch.bfloat16).eps * c.abs().max().item()
        assert_no_worse_than(a, b, c, floor=floor)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_compiles_without_a_break(autocast):
    tensors, gradients = make((6, 8), torch.float32), upstream((6, 8))
    compiled = torch.compile(joint, fullgraph=True, backend="aot_eager")
    ours, expected = (run(f, tensors, gradients, autocast) for f in (compiled, joint))
    for a, b in zip(ours, expected, strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_bit(reentrant):
    tensors, gradients = make((6, 8), torch.float32), upstream((6, 8))

    def again(*leaves):
        return checkpoint(joint, *leaves, use_reentrant=reentrant)

    for autocast in (None, torch.bfloat16):
        ours, expected = (run(f, tensors, gradients, autocast) for f in (again, joint))
        for a, b in zip(ours, expected, strict=True):
            assert_bitwise_equal(a, b)


def attention_and_input():
    torch.manual_seed(5)
    attention = PackedSelfAttention(32, 4, attention_dropout=0.0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return attention, torch.randn(9, 32)


CU_SEQLENS = torch.tensor([0, 4, 9], dtype=torch.int32)


def gradients_of(model, x):
    model(x, cu_seqlens=CU_SEQLENS).square().sum().backward()
    return [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            for p in model.parameters()]  # fmt: skip


@pytest.mark.parametrize("wrap", [fully_shard, DistributedDataParallel])
def test_attention_in_a_process_group(wrap, tmp_path):
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        attention, x = attention_and_input()
        expected = gradients_of(attention, x)
        wrapped = wrap(attention_and_input()[0])
        for a, b in zip(gradients_of(wrapped, x), expected, strict=True):
            assert_bitwise_equal(a, b)
    finally:
        distributed.destroy_process_group()


def test_attention_takes_it_and_calls_what_is_not_plain(monkeypatch):
    attention, x = attention_and_input()
    expected = attention(x, cu_seqlens=CU_SEQLENS)
    calls = []
    attention.key.register_forward_hook(lambda module, args, y: calls.append(y))
    monkeypatch.setattr(op, "_Linears", None)  # a hook wants the module called
    assert_bitwise_equal(attention(x, cu_seqlens=CU_SEQLENS), expected)
    assert len(calls) == 1


def test_without_gradients_and_on_the_reference(monkeypatch):
    tensors = make((6, 8), torch.float32)
    monkeypatch.setattr(op, "_Linears", None)
    with torch.no_grad():
        got = joint(*(t if t is None else t.requires_grad_() for t in tensors))
    with use_backend("reference"):
        expected = joint(*tensors)
    for a, b in zip(got, expected, strict=True):
        assert_bitwise_equal(a.detach(), b.detach())


def test_bad_input():
    x, *parameters = make((6, 8), torch.float32)
    with pytest.raises(TypeError, match="weight must be torch.float16 as x is, got torch.float32"):
        joint(x.half(), *parameters)
    with pytest.raises(ValueError, match="zip"):
        linears(x, parameters[:3], parameters[3:5])
