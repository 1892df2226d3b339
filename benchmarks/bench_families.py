#!/usr/bin/env python
"""accelerate() for every family in its table: what is accelerated, how exact, how fast.

    python benchmarks/bench_families.py
    python benchmarks/bench_families.py --families roberta electra --layers 2 --hidden-size 128

Each family has a row: the classes that are accelerated; whether the parameters stayed the same
objects; the error of the hidden states against transformers in fp64, as a share of twice
transformers' own error in that precision (above 1 no speed is printed); and the speed-up of a
training step on a ragged batch over transformers with sdpa, in fp32 and under autocast in bf16. The
speed-up is the median over pairs measured in turn.
"""

import argparse
import copy
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import torch
import transformers
from report import table
from timing import clock_of, interleaved, ratio
from torch import nn

import spanbert_fast as sb
from spanbert_fast.accelerated.families import FAMILIES, Family

_STD = 0.06  # scores of 768 features have a standard deviation of 3, as in a trained model
_VOCABULARY, _PAD = 1000, 1


def small_model(family: Family, layers: int, hidden_size: int) -> nn.Module:
    """A random model of the family with usual proportions and norms around 1."""
    names = [name for name in family.classes if name.endswith(("Model", "GenerationEncoder"))]
    kind = next(getattr(transformers, name) for name in names if hasattr(transformers, name))
    config = kind.config_class(vocab_size=_VOCABULARY, pad_token_id=_PAD)
    config.hidden_size, config.num_hidden_layers = hidden_size, layers
    config.num_attention_heads = hidden_size // 64
    for name in ("intermediate_size", "hidden_dim"):
        if hasattr(config, name):
            setattr(config, name, 4 * hidden_size)
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm_scale = "norm" in name.lower() and name.endswith("weight")
            parameter.normal_(std=_STD).add_(is_norm_scale)
    return model


def share_of_allowed(models: dict[str, nn.Module], inputs: dict, bf16: bool) -> float:
    """The error of ours over twice that of theirs (root of the mean square, on tokens)."""
    device, real = inputs["input_ids"].device.type, inputs["attention_mask"].bool()
    truth = copy.deepcopy(models["theirs"]).double().eval()
    with torch.no_grad():
        exact = truth(**inputs)[0][real]
        errors = {}
        for name, model in models.items():
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                got = model.eval()(**inputs)[0][real].double()
            errors[name] = (got - exact).square().mean().sqrt().item()
            model.train()
    return errors["ours"] / (2 * errors["theirs"])


def step_ratio(models: dict[str, nn.Module], inputs: dict, bf16: bool, budget: float) -> float:
    """The speed-up over theirs, forward and backward."""
    device = inputs["input_ids"].device.type

    def step(model: nn.Module) -> None:
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            hidden = model(**inputs)[0]
        hidden.float().square().mean().backward()

    calls = {name: (lambda model=model: step(model)) for name, model in models.items()}
    seconds = interleaved(calls, clock_of(device), budget)
    return ratio(seconds["theirs"], seconds["ours"])["median"]


def row(family: Family, arguments: argparse.Namespace) -> list[str]:
    """The family's row."""
    torch.manual_seed(0)
    theirs = small_model(family, arguments.layers, arguments.hidden_size).to(arguments.device)
    ours = copy.deepcopy(theirs)
    before = [id(parameter) for parameter in ours.parameters()]
    sb.accelerate(ours)
    same = before == [id(parameter) for parameter in ours.parameters()]
    shortest = max(1, arguments.seqlen // 8)
    lengths = torch.linspace(shortest, arguments.seqlen, arguments.batch).long()
    real = torch.arange(arguments.seqlen) < lengths[:, None]
    ids = torch.randint(2, _VOCABULARY, real.shape).where(real, torch.tensor(_PAD))
    inputs = {"input_ids": ids, "attention_mask": real.long()}
    inputs = {name: value.to(arguments.device) for name, value in inputs.items()}
    models, cells = {"ours": ours, "theirs": theirs}, []
    for bf16 in (False, True):
        share = share_of_allowed(models, inputs, bf16)
        if not share <= 1:
            cells += [f"{share:.2f} WRONG", "-"]
            continue
        times = step_ratio(models, inputs, bf16, arguments.seconds)
        cells += [f"{share:.2f}", f"{times:.2f}x"]
    return [family.title, str(len(family.classes)), "yes" if same else "NO", *cells]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [family.name for family in FAMILIES]
    parser.add_argument("--families", nargs="+", choices=names, default=names)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seqlen", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    header = ["family", "classes", "same parameters"]
    header += ["fp32: error", "fp32: step", "bf16: error", "bf16: step"]
    rows = [row(family, arguments) for family in FAMILIES if family.name in arguments.families]
    print(table(header, rows))


if __name__ == "__main__":
    main()
