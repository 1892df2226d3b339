"""The Triton kernels of adamw against fp64 and PyTorch's step, on a GPU or in the interpreter."""

import pytest
import torch

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from adamw_cases import OPTIONS, SHAPES, copied, tensors_of, truth_of  # noqa: E402
from spanbert_fast import optim  # noqa: E402
from spanbert_fast.ops import _address_tables  # noqa: E402
from spanbert_fast.ops import adamw as op  # noqa: E402
from spanbert_fast.ops._address_tables import Tables  # noqa: E402
from spanbert_fast.ops.adamw import AdamWTensors  # noqa: E402
from spanbert_fast.optim import AdamW  # noqa: E402
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than  # noqa: E402


def on_device(tensors):
    return AdamWTensors(
        *([None if t is None else t.to(DEVICE, copy=True) for t in part] for part in tensors)
    )


def kernel(tensors, options=OPTIONS, factor=None, tables=None):
    factor = None if factor is None else torch.tensor(factor, device=DEVICE)
    op._run_kernel(tensors, options, factor, tables or Tables())


def test_no_worse_than_pytorch():
    for factor in (None, 0.25):
        start = tensors_of(rounded=(0, 2, 3, 5))
        ours, peer = on_device(start), copied(start)
        kernel(ours, factor=factor)
        op._run_torch(peer, OPTIONS, None if factor is None else torch.tensor(factor), None, None)
        truth = truth_of(start, OPTIONS, factor or 1.0)
        names = ("weights", "exp_avgs", "exp_avg_sqs")
        for name, part in zip(names, truth, strict=True):
            for a, b, c in zip(getattr(ours, name), getattr(peer, name), part, strict=True):
                # the peer may be exact by luck: two roundings of the largest value
                largest = c.abs().max().item() if c.numel() else 0.0
                floor = 2 * torch.finfo(torch.float32).eps * largest
                assert_no_worse_than(a.cpu(), b, c, floor=floor, name=f"{name} {factor}")
        for a, b in zip(ours.gradients, start.gradients, strict=True):
            assert_bitwise_equal(a.cpu(), b)  # in memory they stay as they are
        assert [step.item() for step in ours.steps] == [k + 1.0 for k in range(len(SHAPES))]


def test_copies_are_the_rounded_weights():
    tensors = on_device(tensors_of(rounded=(0, 2, 3, 5)))
    kernel(tensors)
    for k, (weight, copy) in enumerate(zip(tensors.weights, tensors.rounded, strict=True)):
        assert (copy is not None) == (k in (0, 2, 3, 5))
        if copy is not None and copy.numel():
            error = (copy.double() - weight.double()).abs()
            # half a unit in the last place; the interpreter truncates, which is one
            unit = 1.0 if DEVICE == "cpu" else 0.5
            assert (error <= unit * 2.0**-7 * weight.abs().double()).all()


def test_nothing_beside_the_weights_is_written():
    """Weights of many lengths in one block of memory, each with a gap behind it."""
    sizes, memory = [1, 2, 3, 5, 1023, 1025, 2047], {}
    start = tensors_of([(n,) for n in sizes], rounded=range(len(sizes)))
    lists = []
    for name, part in start._asdict().items():
        if name == "steps":
            lists.append([t.to(DEVICE) for t in part])
            continue
        memory[name] = torch.full((8192,), 7.0, dtype=part[0].dtype, device=DEVICE)
        at, views = 0, []
        for t in part:
            views.append(memory[name][at : at + t.numel()].copy_(t))
            at += (t.numel() // 8 + 2) * 8  # begins at multiples of 16 bytes
        lists.append(views)
    inside = {name: torch.zeros(8192, dtype=torch.bool) for name in memory}
    for name, views in zip(start._asdict(), lists, strict=True):
        for view in views if name != "steps" else ():
            first = view.storage_offset()
            inside[name][first : first + view.numel()] = True
    tensors, expected = AdamWTensors(*lists), on_device(start)
    kernel(tensors)
    kernel(expected)
    for part, others in zip(tensors, expected, strict=True):
        for a, b in zip(part, others, strict=True):
            assert_bitwise_equal(a, b)
    for name, whole in memory.items():
        assert (whole.cpu()[~inside[name]] == 7).all(), name


def test_the_first_step_and_a_far_one():
    """Bias corrections near 0 and near 1 keep their digits."""
    for step in (0.0, 1.0, 99_999.0):
        start = tensors_of([(70,)])._replace(steps=[torch.tensor(step)])
        options = OPTIONS._replace(beta1=0.9, beta2=0.9999)
        ours = on_device(start)
        kernel(ours, options)
        (truth,) = truth_of(start, options)[0]
        torch.testing.assert_close(ours.weights[0].cpu().double(), truth, rtol=1e-6, atol=1e-6)


def test_a_beta_of_zero_and_a_rate_on_the_device():
    start = tensors_of([(70,)])
    options = OPTIONS._replace(beta1=0.0)
    ours, again = on_device(start), on_device(start)
    kernel(ours, options)
    kernel(again, options._replace(lr=torch.tensor(options.lr, device=DEVICE)))
    (truth,) = truth_of(start, options)[0]
    torch.testing.assert_close(ours.weights[0].cpu().double(), truth, rtol=1e-6, atol=1e-6)
    assert_bitwise_equal(ours.weights[0], again.weights[0])


def test_tables_follow_gradients_that_move():
    tables, start = Tables(), tensors_of()
    ours, expected = on_device(start), on_device(start)
    for _ in range(3):
        table, programs = tables.of(ours)
        assert tables.of(ours)[0] is table  # not copied again
        kernel(ours, tables=tables)
        kernel(expected)
        ours = ours._replace(gradients=[g.clone() for g in ours.gradients])
        assert tables.of(ours)[1] is programs
    for a, b in zip(ours.weights, expected.weights, strict=True):
        assert_bitwise_equal(a, b)


def test_a_capture_has_tables_of_its_own_which_are_filled_behind_it(monkeypatch):
    weights = [torch.nn.Parameter(torch.randn(n, device=DEVICE)) for n in (5, 3000)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer, seen = AdamW(weights), []
    run = lambda tensors, options, factor, tables: seen.append(tables.of(tensors))  # noqa: E731
    monkeypatch.setattr(op, "has_kernel", lambda tensors: True)
    monkeypatch.setattr(op, "_run_kernel", run)
    optimizer.step()
    with monkeypatch.context() as capturing:
        for module in (optim, _address_tables):
            capturing.setattr(module, "is_capturing", lambda device: True)
        with pytest.raises(RuntimeError, match=r"inside of optimizer.capture\(\)"):
            optimizer.step()
        with optimizer.capture():
            optimizer.step()
    optimizer.step()
    before, captured, after = seen
    for ours, theirs, again in zip(captured, before, after, strict=True):
        assert ours is not theirs and again is theirs
        assert_bitwise_equal(ours, theirs)


def test_programs_cover_every_element_once():
    sizes = [0, 1, 1024, 1025, 0, 5000]
    tensors = tensors_of([(n,) for n in sizes])
    _, programs = Tables().of(tensors)
    assert programs.tolist() == [[1, 0], [2, 0], [3, 0], [3, 1], *([5, k] for k in range(5))]
    kernel(on_device(tensors_of([(0,)])))  # nothing to launch


def test_the_version_of_what_is_written_rises():
    """Autograd then refuses a backward through a weight that a step has changed."""
    tensors = on_device(tensors_of())
    before = [weight._version for weight in tensors.weights]
    kernel(tensors)
    assert all(w._version > v for w, v in zip(tensors.weights, before, strict=True))


def test_the_optimiser_takes_the_kernel(monkeypatch):
    """With clipping and rounded copies, beside PyTorch's; on a CPU as if it were a GPU."""
    monkeypatch.setattr(op, "has_kernel", lambda tensors: True)
    monkeypatch.setattr(op, "_run_torch", None)

    def weights():
        torch.manual_seed(2)
        made = [
            torch.nn.Parameter(torch.randn(s, device=DEVICE)) for s in ((40, 33), (33,), (8, 40))
        ]
        return made[:2], made[2:]

    ours, theirs = weights(), weights()
    settings = {"lr": 0.1, "weight_decay": 0.2}
    optimizer = AdamW([{"params": p} for p in ours], **settings, keep_rounded=True)
    peer = torch.optim.AdamW([{"params": p} for p in theirs], **settings)
    copy = optimizer._rounded.of(ours[0][0])
    for step in range(3):
        for a, b in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
            b.grad = torch.randn_like(b)
            a.grad = b.grad.clone()
        if step == 1:  # a weight without a gradient keeps its step
            ours[0][1].grad = theirs[0][1].grad = None
        torch.nn.utils.clip_grad_norm_([*theirs[0], *theirs[1]], 0.5)
        optimizer.step(max_grad_norm=0.5)
        peer.step()
    for a, b in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert optimizer.state[a]["step"].item() == peer.state[b]["step"].item()
    error = (copy.double() - ours[0][0].double()).abs()
    assert (error <= 2.0**-7 * ours[0][0].abs()).all()
    before = copy.clone()
    assert optimizer._rounded.of(ours[0][0]) is copy  # up to date: not made again
    assert_bitwise_equal(copy, before)
