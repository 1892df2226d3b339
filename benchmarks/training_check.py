"""Whether the providers of bench_training.py compute the right loss and gradients (contract C5).

The truth is Hugging Face's eager model in fp64; for both losses it is its encoder under our losses
on the reference ops. A tensor's root mean square error may be twice PyTorch's in the same dtype,
and its largest error four times: among a hundred tensors, the largest error of pure noise is often
more than twice that of another. PyTorch's error is the larger one of eager and sdpa attention:
sdpa's backward takes the row sums of probabilities from a rounded context, as every fused attention
does.
"""

import contextlib
import dataclasses
import math
import zlib
from pathlib import Path

import torch
from torch import nn
from training_providers import BOTH, MLM, Batch, Case, Provider, provider_of, stock_encoder

from spanbert_fast.ops._backend import use_backend

LOSS = "loss"
Tensors = dict[str, torch.Tensor]
Size = tuple[float, float]  # root mean square, and largest absolute value
Errors = dict[str, dict[str, Size]]  # objective -> tensor's name -> its error, or what is allowed

_CHECKED_TOKENS = 1024
_FACTORS = (2.0, 4.0)
# With BERT's 0.02 a fault may stay below rounding. With this value the scores of 768 features have
# a standard deviation of 3, so that the softmax is far from uniform, as in a trained model. With
# 0.3 it is one-hot, and bf16 gradients, also Hugging Face's, have no correct digit to compare.
_STD = 0.06


def case_to_check(case: Case) -> Case:
    """The case with about 1,024 of its tokens and no dropout, small enough for fp64."""
    kept = max(1, _CHECKED_TOKENS // case.seqlen)
    stride = math.ceil(len(case.lengths) / kept)
    return dataclasses.replace(case, lengths=case.lengths[::stride], dropout=0.0)


def precision(dtype: str, device: str) -> contextlib.AbstractContextManager:
    """Autocast to bf16, or a context that does nothing."""
    return torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16")


@torch.no_grad()
def redraw(model: nn.Module) -> None:
    """Give every parameter large random values that depend on its name alone."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        is_norm_scale = "norm" in name.lower() and name.endswith("weight")
        values = torch.randn(parameter.shape, generator=generator) * _STD + is_norm_scale
        parameter.copy_(values)


def loss_and_gradients(provider: Provider, objective: str, batch: Batch, dtype: str) -> Tensors:
    """The loss and each parameter's gradient by name, on the CPU, without dropout. For "fp64" the
    model must be in fp64 already."""
    model = provider.model.eval()
    model.zero_grad(set_to_none=True)
    with use_backend(provider.backend):
        with precision(dtype, next(model.parameters()).device.type):
            loss = provider.losses[objective](batch)
        loss.backward()
    found = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return {LOSS: loss.detach().cpu(), **found}


def _size(tensor: torch.Tensor) -> Size:
    tensor = tensor.double()
    return tensor.square().mean().sqrt().item(), tensor.abs().max().item()


def errors(found: Tensors, truth: Tensors) -> dict[str, Size]:
    """The size of found - truth for each tensor of `truth`; infinite if one is missing or not
    finite."""
    result = {}
    for name, exact in truth.items():
        result[name] = (math.inf, math.inf)
        if name in found and torch.isfinite(found[name]).all():
            result[name] = _size(found[name].double() - exact)
    return result


def check_errors(provider: Provider, case: Case, truth_file: Path) -> Errors:
    """The errors of each objective that the provider has; changes the model's weights."""
    truth = torch.load(truth_file, mmap=True)
    batch = Batch.of(case_to_check(case))
    redraw(provider.model)
    return {
        objective: errors(loss_and_gradients(provider, objective, batch, case.dtype), exact)
        for objective, exact in truth.items()
        if objective in provider.losses
    }


def _peers(case: Case, attention: str) -> dict[str, Provider]:
    """PyTorch's model for each objective."""
    stock = stock_encoder(case, attention)
    stock.model.to(case.device)
    return {MLM: provider_of(f"hf-{attention}", case), BOTH: stock}


def write_truth(case: Case, truth_file: Path) -> None:
    """Save {objective: loss and gradients in fp64} of a case, which serves every dtype."""
    checked = case_to_check(case)
    batch = Batch.of(checked)
    truth = {}
    for objective, provider in _peers(checked, "eager").items():
        redraw(provider.model)
        provider.model.double()
        truth[objective] = loss_and_gradients(provider, objective, batch, "fp64")
    torch.save(truth, truth_file)


def allowed_errors(case: Case, truth_file: Path) -> Errors:
    """The errors that are allowed in a case's dtype."""
    truth = torch.load(truth_file, mmap=True)
    checked = case_to_check(case)
    peers = [_peers(checked, attention) for attention in ("eager", "sdpa")]
    return {
        objective: _allowed(
            exact,
            case.dtype,
            *(check_errors(peer[objective], case, truth_file)[objective] for peer in peers),
        )
        for objective, exact in truth.items()
    }


def _allowed(truth: Tensors, dtype: str, *peers: dict[str, Size]) -> dict[str, Size]:
    sizes = {name: _size(tensor) for name, tensor in truth.items()}
    eps = torch.finfo(torch.bfloat16 if dtype == "bf16" else torch.float32).eps
    allowed = {}
    for name in truth:
        if name == LOSS:  # one number, which a peer may hit by luck: a unit in its last place
            floors = [eps * size for size in sizes[LOSS]]
        else:  # fp32 sums in another order, beside gradients that a peer happens to hit
            others = [size for other, size in sizes.items() if other != LOSS]
            largest = [max(kind) for kind in zip(*others, strict=True)]
            floors = [torch.finfo(torch.float32).eps * size for size in largest]
        errors_of_peers = zip(*(peer[name] for peer in peers), strict=True)
        allowed[name] = tuple(
            factor * max(error) + floor
            for factor, error, floor in zip(_FACTORS, errors_of_peers, floors, strict=True)
        )
    for name in truth:
        if name.endswith("key.bias"):  # zero but for rounding: softmax ignores a common shift
            weight = allowed[name.removesuffix("bias") + "weight"]
            allowed[name] = tuple(a + b for a, b in zip(allowed[name], weight, strict=True))
    return allowed


def verdict(found: Errors, allowed: Errors) -> tuple[float, str]:
    """(the largest error as a share of the allowed error, its tensor); up to 1 is right."""
    return max(
        (error / limit, f"{objective}: {name}")
        for objective, by_name in found.items()
        for name, sizes in by_name.items()
        for error, limit in zip(sizes, allowed[objective][name], strict=True)
    )
