"""A training step as a CUDA graph: a capture restores the model, and refuses what it cannot do."""

import pytest
import torch

from spanbert_fast.optim import AdamW
from spanbert_fast.testing import assert_bitwise_equal
from spanbert_fast.training.captured_step import CapturedStep, _undone, check_alike
from static_shapes_cases import model_of, pair_of_batches, small_tokenizer, step

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def test_warming_up_is_undone(tokenizer):
    """Warming up changes neither the first step nor a later one."""
    batches = [pair_of_batches(tokenizer, seed=k)[1] for k in range(3)]
    results = []
    for warm_up_at in (None, 0, 1):
        torch.manual_seed(4)
        model = model_of(tokenizer)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

        def train(batch, model=model, optimizer=optimizer):
            step(model, batch)
            optimizer.step()

        for number, batch in enumerate(batches[:2]):
            if number == warm_up_at:
                with _undone(model, optimizer):
                    train(batches[2])
            train(batch)
        results.append([p.detach().clone() for p in model.parameters()])
    for others in results[1:]:
        for ours, expected in zip(others, results[0], strict=True):
            assert_bitwise_equal(ours, expected)


def test_what_cannot_be_captured(tokenizer):
    model = model_of(tokenizer)
    batch = pair_of_batches(tokenizer)[1]
    plain = torch.optim.AdamW(model.parameters())
    seedless = {name: value for name, value in batch.items() if name != "dropout_seed"}
    for arguments, message in (
        ((model, plain, batch), "optimizer must have capturable=True in all its groups"),
        ((model, None, seedless), "batch must hold dropout_seed in training, got input_ids|cu_"),
        ((model, None, batch), "model must be on a GPU, got one on cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            CapturedStep(*arguments)
    for changed, message in (
        ({"max_seqlen": 12}, r"batch\['max_seqlen'\] must be 40 as in the first, got 12"),
        (
            {"input_ids": batch["input_ids"][1:]},
            r"batch\['input_ids'\] must be torch.int64 \(160,\) as .*, got torch.int64 \(159,\)",
        ),
        ({"labels": None}, "batch must hold .*, got .*labels"),
    ):
        with pytest.raises(ValueError, match=message):
            check_alike({**batch, **changed}, batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("with_optimizer", ["torch's", "ours", None])
def test_a_captured_step_trains_as_a_plain_one(tokenizer, dropout, with_optimizer):
    batches = [pair_of_batches(tokenizer, n, seed=k)[1] for k, n in enumerate([(40, 3), (9,) * 9])]
    batches = [batches[k % 2] | {"dropout_seed": torch.tensor(k)} for k in range(8)]
    results = []
    for captured in (False, True):
        torch.manual_seed(4)
        model = model_of(tokenizer, dropout).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, capturable=True)
        if captured and with_optimizer == "ours":
            optimizer = AdamW(model.parameters(), lr=1e-3, keep_rounded=True)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.1)
        losses = []
        if captured:
            inside = {"optimizer": optimizer, "max_grad_norm": 1.0}
            outside = {"optimizer": None, "max_grad_norm": None}
            run = CapturedStep(model, batch=batches[0], **(inside if with_optimizer else outside))
        for batch in batches:
            optimizer.zero_grad()
            if captured:
                loss = run(batch)["loss"]
            else:
                on_gpu = {k: v.cuda() if torch.is_tensor(v) else v for k, v in batch.items()}
                loss = model(**on_gpu).loss
                loss.backward()
            if not (captured and with_optimizer):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            scheduler.step()
            losses.append(loss.detach().clone())
        results.append((torch.stack(losses), [p.detach() for p in model.parameters()]))
    (expected, weights), (got, others) = results
    assert expected.unique().numel() == len(batches)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)
    for ours, theirs in zip(others, weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
