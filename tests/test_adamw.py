"""adamw and AdamW on a CPU: beside torch.optim.AdamW, checkpoints of both, rounded copies."""

import copy
import pickle

import pytest
import torch
from torch import nn

from adamw_cases import OPTIONS, SHAPES, copied, tensors_of, truth_of
from spanbert_fast import use_backend
from spanbert_fast.ops import adamw as op
from spanbert_fast.ops import linear as linear_op
from spanbert_fast.ops.adamw import AdamWTensors, adamw
from spanbert_fast.ops.linear import linear, linears
from spanbert_fast.optim import AdamW
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than
from static_shapes_cases import model_of as pretraining_model
from static_shapes_cases import pair_of_batches, small_tokenizer

SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}


@pytest.mark.parametrize("backend", ["kernels", "reference"])
@pytest.mark.parametrize("factor", [None, 0.25])
def test_the_op_against_fp64(factor, backend):
    start = tensors_of(rounded=(0, 2))
    ours, peer = copied(start), copied(start)
    given = None if factor is None else torch.tensor(factor)
    with use_backend(backend):
        adamw(ours, OPTIONS, factor=given)
    op._run_torch(peer, OPTIONS, given, None, None)
    truth = truth_of(start, OPTIONS, factor or 1.0)
    for name, part in zip(("weights", "exp_avgs", "exp_avg_sqs"), truth, strict=True):
        for a, b, c in zip(getattr(ours, name), getattr(peer, name), part, strict=True):
            # the peer may be exact by luck: two roundings of the largest value
            largest = c.abs().max().item() if c.numel() else 0.0
            floor = 2 * torch.finfo(torch.float32).eps * largest
            assert_no_worse_than(a, b, c, floor=floor, name=name)
    assert [step.item() for step in ours.steps] == [k + 1.0 for k in range(len(SHAPES))]
    for weight, rounded in zip(ours.weights, ours.rounded, strict=True):
        if rounded is not None:
            assert_bitwise_equal(rounded, weight.bfloat16())


def test_the_reference_is_the_papers_algorithm():
    """Written out with numbers (Loshchilov and Hutter 2019, algorithm 2)."""
    tensors = AdamWTensors(
        *[[torch.tensor([x])] for x in (2.0, 3.0, 0.0, 0.0)], [torch.zeros(())], [None]
    )
    with use_backend("reference"):
        adamw(tensors, OPTIONS)
    # the first step's means are the gradient and its square, so it moves by lr
    assert tensors.weights[0].item() == pytest.approx(2 - 0.01 * 0.1 * 2 - 0.01, rel=1e-6)
    assert tensors.exp_avgs[0].item() == pytest.approx(0.6)
    assert tensors.exp_avg_sqs[0].item() == pytest.approx(0.09)


def test_bad_lists():
    tensors = tensors_of()
    with pytest.raises(ValueError, match="gradients must have 6 tensors as weights has, got 5"):
        adamw(tensors._replace(gradients=tensors.gradients[1:]), OPTIONS)
    moved = [tensors.exp_avgs[1], *tensors.exp_avgs[1:]]
    with pytest.raises(
        ValueError, match=r"exp_avgs must have its weight's shape \(3,\), got \(1024,\)"
    ):
        adamw(tensors._replace(exp_avgs=moved), OPTIONS)
    adamw(AdamWTensors([], [], [], [], [], []), OPTIONS)


def model_of(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))


def groups_of(model):
    weights = [p for p in model.parameters() if p.dim() == 2]
    return [{"params": weights}, {"params": [p for p in model.parameters() if p.dim() < 2],
                                  "weight_decay": 0.0}]  # fmt: skip


def train(model, optimizer, steps, clip=None, ours=True):
    for number in range(steps):
        torch.manual_seed(number)
        optimizer.zero_grad()
        model(5 * torch.randn(4, 6)).square().sum().backward()
        if clip is not None and not ours:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step(**({"max_grad_norm": clip} if ours else {}))


def theirs_of(model, **more):
    return torch.optim.AdamW(groups_of(model), **SETTINGS, fused=True, **more)


@pytest.mark.parametrize("clip", [None, 0.5, 1e9])
def test_it_trains_as_pytorchs(clip):
    ours, theirs = model_of(), model_of()
    train(ours, AdamW(groups_of(ours), **SETTINGS), 4, clip)
    train(theirs, theirs_of(theirs), 4, clip, ours=False)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert not torch.equal(ours[0].weight, model_of()[0].weight)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("first_is_ours", [True, False])
def test_checkpoints_go_both_ways(first_is_ours, fused):
    straight = model_of()
    train(straight, AdamW(groups_of(straight), **SETTINGS), 5)
    model = model_of()
    ours, theirs = AdamW(groups_of(model), **SETTINGS), torch.optim.AdamW(
        groups_of(model), **SETTINGS, fused=fused)  # fmt: skip
    first, second = (ours, theirs) if first_is_ours else (theirs, ours)
    train(model, first, 2, ours=first is ours)
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(state)
    assert set(state["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert set(ours.state_dict()["param_groups"][0]) == set(theirs.state_dict()["param_groups"][0])
    for number in range(2, 5):
        torch.manual_seed(number)
        second.zero_grad()
        model(5 * torch.randn(4, 6)).square().sum().backward()
        second.step()
    for a, b in zip(model.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert ours.param_groups[0]["fused"] and not ours.param_groups[0]["capturable"]


def test_other_kinds_of_states_are_refused():
    model = model_of()
    optimizer = AdamW(groups_of(model), **SETTINGS)
    state = torch.optim.AdamW(groups_of(model), **SETTINGS, amsgrad=True).state_dict()
    with pytest.raises(ValueError, match="state_dict must be without amsgrad, got it in group 0"):
        optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_goes_on(duplicate):
    model = model_of()
    optimizer = AdamW(model.parameters(), keep_rounded=True)
    train(model, optimizer, 1)
    again = duplicate(optimizer)
    (weight, *_) = again.param_groups[0]["params"]
    weight.grad = torch.ones_like(weight)
    before = weight.detach().clone()
    again.step(max_grad_norm=1.0)
    assert not torch.equal(weight, before)
    with again.rounded_weights():
        pass


def test_schedulers_closures_and_late_groups():
    model = model_of()
    optimizer = AdamW(model[0].parameters(), **SETTINGS)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": torch.tensor(1e-3)})

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(4, 6)).square().sum()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in model.parameters()]
    first, second = (
        optimizer.step(closure).item(),
        optimizer.step(closure, max_grad_norm=1.0).item(),
    )
    assert second < first
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    optimizer.zero_grad()
    optimizer.step(max_grad_norm=1.0)  # no weight has a gradient


def test_a_grad_scaler():
    """A step whose gradients are not finite is left out, as PyTorch's is."""
    models = model_of(), model_of()
    for model, optimizer in zip(models, (AdamW(models[0].parameters()), torch.optim.AdamW(
            models[1].parameters(), fused=True)), strict=True):  # fmt: skip
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        for factor in (1.0, float("inf"), 2.0):
            optimizer.zero_grad()
            scaler.scale(factor * model(torch.ones(4, 6)).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert_bitwise_equal(a.detach(), b.detach())
    optimizer = AdamW(models[0].parameters())
    optimizer.grad_scale = torch.ones(())
    with pytest.raises(ValueError, match="max_grad_norm must be None for gradients .* got 1.0"):
        optimizer.step(max_grad_norm=1.0)


class TestRounded:
    """bf16 copies in the place of casts, as on a GPU."""

    @pytest.fixture(autouse=True)
    def joined(self, monkeypatch):
        monkeypatch.setattr(linear_op, "_joins", lambda device: True)

    @staticmethod
    def run(model, optimizer, steps=3):
        losses = []
        for number in range(steps):
            torch.manual_seed(number)
            x = torch.randn(4, 6)
            optimizer.zero_grad()
            context = getattr(optimizer, "rounded_weights", torch.enable_grad)()
            with torch.autocast("cpu", torch.bfloat16), context:
                y = linear(x, model[0].weight, model[0].bias)
                (y,) = linears(model[1](y), [model[2].weight], [model[2].bias])
            y.float().square().sum().backward()
            optimizer.step()
            losses.append(y.detach())
        return [*losses, *(p.detach() for p in model.parameters())]

    def test_training_has_the_same_bits(self):
        ours, plain = model_of(), model_of()
        optimizer = AdamW(ours.parameters(), lr=0.1, keep_rounded=True)
        got = self.run(ours, optimizer)
        expected = self.run(plain, AdamW(plain.parameters(), lr=0.1))
        for a, b in zip(got, expected, strict=True):
            assert_bitwise_equal(a, b)
        copies = optimizer._rounded.kept(list(ours.parameters()))
        assert [c is not None for c in copies] == [True, False, True, False]  # linear weights
        assert_bitwise_equal(copies[0], ours[0].weight.detach().bfloat16())
        assert "rounded" not in str(optimizer.state_dict().keys())

    def test_a_weight_that_something_else_changes(self):
        model = model_of()
        optimizer = AdamW(model.parameters(), keep_rounded=True)
        self.run(model, optimizer)
        model.load_state_dict(model_of(seed=7).state_dict())
        for refresh in (optimizer.refresh_rounded, lambda: None):
            refresh()
            plain = model_of(seed=7)
            with torch.no_grad():
                plain.load_state_dict(model.state_dict())
            got = self.run(model, optimizer, 1)[0]
            assert_bitwise_equal(got, self.run(plain, AdamW(plain.parameters()), 1)[0])
            with torch.no_grad():
                model[0].weight.mul_(2)

    def test_only_its_own_weights_inside_its_block(self):
        model, other = model_of(), model_of(seed=2)
        optimizer = AdamW(model.parameters(), keep_rounded=True)
        self.run(other, optimizer, 1)
        assert optimizer._rounded.kept(list(other.parameters())) == [None] * 4
        with torch.autocast("cpu", torch.bfloat16):
            linear(torch.ones(2, 6), model[0].weight)
        assert optimizer._rounded.kept(list(model.parameters())) == [None] * 4
        with optimizer.rounded_weights(), torch.autocast("cpu", torch.float16):
            linear(torch.ones(2, 6), model[0].weight)  # not in bf16
        assert optimizer._rounded.kept(list(model.parameters())) == [None] * 4

    def test_every_linear_layer_of_a_model_takes_them(self):
        tokenizer = small_tokenizer()
        batches = [pair_of_batches(tokenizer, seed=k)[0] for k in range(3)]
        results = []
        for keep in (True, False):
            torch.manual_seed(4)
            model = pretraining_model(tokenizer, dropout=0.1)
            optimizer = AdamW(model.parameters(), lr=1e-3, keep_rounded=keep)
            losses = []
            for batch in batches:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16), optimizer.rounded_weights():
                    loss = model(**batch).loss
                loss.backward()
                optimizer.step(max_grad_norm=1.0)
                losses.append(loss.detach())
            results.append([*losses, *(p.detach() for p in model.parameters())])
            if keep:
                named = dict(model.named_parameters())
                copies = optimizer._rounded.kept(named.values())
                kept = {n for n, c in zip(named, copies, strict=True) if c is not None}
                layers = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
                # the decoder's weight is the loss's, and the first span layer's is used in parts
                assert {n.removesuffix(".weight") for n in kept} == {
                    n for n in layers if "decoder" not in n and not n.endswith("boundary.linear1")
                }
        assert len(set(map(float, results[0][:3]))) == 3
        for a, b in zip(*results, strict=True):
            assert_bitwise_equal(a, b)
