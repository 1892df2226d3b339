#!/usr/bin/env python
"""accelerate() for every family in its table: what is accelerated, how exact, how fast.

    python benchmarks/bench_families.py
    python benchmarks/bench_families.py --families roberta electra --layers 2 --hidden-size 128
    python tools/common_model_tests.py --json common.json
    python benchmarks/bench_families.py --common-tests common.json    with what passed there
    python benchmarks/bench_families.py --families bert --model MINILM    with real weights, too

A row a family, of a random encoder with real proportions: the classes that are accelerated; how
many of transformers' common model tests passed, and how many passed on its own classes; whether
the parameters stayed the same objects; the error against transformers in fp64, of the hidden
states or of all gradients, as a share of what C5 allows: twice the error that transformers itself
has in that precision (above 1 no speed is printed); and how many times as fast a training step on a
ragged batch is as transformers' with sdpa, in fp32 and under autocast in bf16: the median over
pairs that were measured in turn.
"""

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import torch
import transformers
from report import of_families
from results_format import RESULTS, document, write_document
from timing import clock_of, interleaved, ratio
from torch import nn

import spanbert_fast as sb
from spanbert_fast.accelerated.families import FAMILIES, Family

_SPREAD = 1.7  # of a product with a weight; scores of attention are then as wide as in training
_VOCABULARY, _PAD = 1000, 1


def small_model(family: Family, layers: int, hidden_size: int) -> nn.Module:
    """A random model of the family with real proportions, its norms around 1, no dropout."""
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
            parameter.normal_(std=_SPREAD / hidden_size**0.5).add_(is_norm_scale)
    return model


def _step(model: nn.Module, inputs: dict, bf16: bool) -> torch.Tensor:
    """Forward and backward of a loss that reads every token; the tokens' hidden states."""
    model.zero_grad()
    with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=bf16):
        hidden = model(**inputs)[0][inputs["attention_mask"].bool()]
    # of squares a norm would leave no gradient
    hidden.to(torch.promote_types(hidden.dtype, torch.float32)).tanh().mean().backward()
    return hidden.detach()


def share_of_allowed(
    models: dict[str, nn.Module], truth: nn.Module, inputs: dict, bf16: bool
) -> float:
    """The error of ours over twice that of theirs, the larger one of hidden states and gradients
    (the root of the sum of squares)."""

    def measured(model: nn.Module, bf16: bool) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = _step(model.eval(), inputs, bf16).double()
        grads = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
        model.train()
        return hidden, torch.cat(grads)

    exact = measured(truth, False)
    errors = {
        name: [(a - b).norm().item() for a, b in zip(measured(model, bf16), exact, strict=True)]
        for name, model in models.items()
    }
    return max(a / (2 * b) for a, b in zip(errors["ours"], errors["theirs"], strict=True))


def step_ratio(
    models: dict[str, nn.Module], inputs: dict, bf16: bool, budget: float
) -> dict[str, float]:
    """Times as fast as theirs, forward and backward with dropout."""
    device = inputs["input_ids"].device.type
    calls = {
        name: (lambda model=model: _step(model, inputs, bf16)) for name, model in models.items()
    }
    seconds = interleaved(calls, clock_of(device), budget, least=5, most=15)
    return ratio(seconds["theirs"], seconds["ours"])


def ragged(arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Sequences of every length from an eighth of the longest one."""
    shortest = max(1, arguments.seqlen // 8)
    lengths = torch.linspace(shortest, arguments.seqlen, arguments.batch).long()
    real = torch.arange(arguments.seqlen) < lengths[:, None]
    ids = torch.randint(2, _VOCABULARY, real.shape).where(real, torch.tensor(_PAD))
    inputs = {"input_ids": ids, "attention_mask": real.long()}
    return {name: value.to(arguments.device) for name, value in inputs.items()}


def measure(
    family: Family, theirs: nn.Module, arguments: argparse.Namespace, common: dict
) -> dict[str, Any]:
    """The result of a model of the family."""
    theirs = theirs.to(arguments.device).float().train()
    ours, truth = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    before = [id(parameter) for parameter in ours.parameters()]
    sb.accelerate(ours)
    same = before == [id(parameter) for parameter in ours.parameters()]
    inputs, models = ragged(arguments), {"ours": ours, "theirs": theirs}
    result = {
        "family": family.title,
        "layers": theirs.config.num_hidden_layers,
        "hidden_size": theirs.config.hidden_size,
        "lengths": inputs["attention_mask"].sum(1).tolist(),
        "classes": len(family.classes),
        "common_tests": common.get(family.name),
        "same_parameters": same,
        "share_of_allowed_error": {},
        "speedups": {},
    }
    for dtype in ("fp32", "bf16"):
        share = share_of_allowed(models, truth, inputs, dtype == "bf16")
        result["share_of_allowed_error"][dtype] = share
        if share <= 1:
            result["speedups"][dtype] = step_ratio(
                models, inputs, dtype == "bf16", arguments.seconds
            )
    shares = result["share_of_allowed_error"].values()
    result["passed"] = same and all(share <= 1 for share in shares)
    return result


def models(arguments: argparse.Namespace) -> Iterator[tuple[Family, str, nn.Module]]:
    """(family, name of the row, model): random ones, then that of the checkpoint."""
    for family in FAMILIES:
        if family.name in arguments.families:
            torch.manual_seed(0)
            yield family, family.title, small_model(family, arguments.layers, arguments.hidden_size)
    if arguments.model:
        made = transformers.AutoModel.from_pretrained(arguments.model)
        kind = type(made).__name__
        family = next(family for family in FAMILIES if kind in family.classes)
        yield family, f"{family.title}, trained weights", made


def main(argv: list[str] | None = None) -> int:
    """Measure, write the results and print their table; 1 where one is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [family.name for family in FAMILIES]
    add = parser.add_argument
    add("--families", nargs="+", choices=names, default=names)
    add("--layers", type=int, default=4)
    add("--hidden-size", type=int, default=768, help="a multiple of 64")
    add("--batch", type=int, default=16)
    add("--seqlen", type=int, default=128)
    add("--seconds", type=float, default=10.0, help="of each measurement")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--common-tests", type=Path, help="what tools/common_model_tests.py --json has written")
    add("--model", help="a checkpoint of one of the families, whose weights give one more row")
    add("--output", type=Path, default=RESULTS / "families.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    common = {}
    if arguments.common_tests:
        common = json.loads(arguments.common_tests.read_text(encoding="utf-8"))
    results = []
    for family, title, model in models(arguments):
        results.append({**measure(family, model, arguments, common), "family": title})
        found = document("families", arguments.threads, results, arguments.device)
        write_document(arguments.output, found)
        print(title, flush=True, file=sys.stderr)
    print(of_families(results))
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
