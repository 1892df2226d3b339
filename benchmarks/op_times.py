"""Prints median seconds of each op, forward and backward, as JSON; compare.py runs it twice.

The first argument is the root of the package under test, the second the device (default "cpu"). Ops
that the package does not have are left out.
"""

import importlib
import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGE = Path(sys.argv[1]).resolve()
DEVICE = sys.argv[2] if len(sys.argv) > 2 else "cpu"
sys.path.insert(0, str(PACKAGE))
sys.path.append(str(Path(__file__).resolve().parent))

import torch
from timing import clock_of


def bind_kernels(package: Path) -> None:
    """Make `spanbert_fast.kernels` the package's own folder.

    setup.py maps the name to `kernels/`, so an import by path would find the kernels of the
    installed copy.
    """
    name, folder = "spanbert_fast.kernels", package / "kernels"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


bind_kernels(PACKAGE)
torch.set_default_device(DEVICE)

NAMES = (
    "bias_gelu",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "linear_cross_entropy",
    "span_boundary_gather",
    "varlen_attention",
)


def imported(name: str) -> Callable | None:
    """The op of that name; None if the package does not have it."""
    module = f"spanbert_fast.ops.{name}"
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None


OPS = {name: imported(name) for name in NAMES}
(
    bias_gelu,
    dropout_add_layer_norm,
    embedding_layer_norm,
    linear_cross_entropy,
    span_boundary_gather,
    varlen_attention,
) = OPS.values()

TINY = os.environ.get("SPANBERT_FAST_BENCH_TINY") == "1"
TOKENS, HIDDEN, HEADS, VOCAB = (64, 64, 2, 100) if TINY else (2048, 768, 12, 28_996)
CALLS = 2 if TINY else 5
SEED = torch.tensor(2019)


def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A random tensor that requires a gradient."""
    return (0.1 * torch.randn(shape)).to(dtype).requires_grad_()


def ops(dtype: torch.dtype) -> Iterator[tuple[str, Callable, list[torch.Tensor]]]:
    """(name, function of its leaves, leaves)."""
    x, residual = leaf(TOKENS, HIDDEN, dtype=dtype), leaf(TOKENS, HIDDEN, dtype=dtype)
    weight, bias = leaf(HIDDEN, dtype=dtype), leaf(HIDDEN, dtype=dtype)
    wide = [leaf(TOKENS, 4 * HIDDEN, dtype=dtype), leaf(4 * HIDDEN, dtype=dtype)]
    yield "bias_gelu", bias_gelu, wide
    dropout = importlib.import_module("spanbert_fast.ops.dropout").Dropout(0.1, SEED)
    yield (
        "dropout_add_layer_norm",
        lambda *leaves: dropout_add_layer_norm(*leaves, dropout=dropout),
        [x, residual, weight, bias],
    )
    words, places, types = (leaf(n, HIDDEN, dtype=dtype) for n in (VOCAB, 512, 2))
    ids = torch.randint(VOCAB, (TOKENS,))
    rows = (ids, torch.arange(TOKENS) % 512, torch.zeros_like(ids))
    yield (
        "embedding_layer_norm",
        lambda *leaves: embedding_layer_norm(*rows, *leaves, dropout=dropout),
        [words, places, types, weight, bias],
    )
    few = max(1, TOKENS // 4)
    logits_bias, targets = leaf(VOCAB, dtype=dtype), torch.randint(VOCAB, (few,))
    yield (
        "linear_cross_entropy",
        lambda h, w, b: linear_cross_entropy(h, w, b, targets).losses,
        [leaf(few, HIDDEN, dtype=dtype), words, logits_bias],
    )
    spans = max(1, few // 4)
    bounds = torch.arange(0, 4 * spans + 1, 4, dtype=torch.int32)
    yield (
        "span_boundary_gather",
        lambda a, b, c, d: span_boundary_gather(a, b, bounds, 4 * spans, c, d),
        [leaf(spans, HIDDEN, dtype=dtype), leaf(20, HIDDEN, dtype=dtype), weight, bias],
    )
    for seqlen in (32,) if TINY else (128, 512):
        cu_seqlens = torch.arange(0, TOKENS + 1, seqlen, dtype=torch.int32)
        for p in (0.0, 0.1):
            yield (
                f"varlen_attention, {seqlen} tokens, dropout {p}",
                lambda q, k, v, n=seqlen, c=cu_seqlens, d=dropout if p else None: varlen_attention(
                    q, k, v, c, n, dropout=d
                ),
                [leaf(TOKENS, HEADS, HIDDEN // HEADS, dtype=dtype) for _ in range(3)],
            )


def seconds(function: Callable, leaves: list[torch.Tensor]) -> float:
    """Median of some calls, after one that warms up."""

    def call():
        y = function(*leaves)
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    call()
    clock = clock_of(DEVICE)
    return statistics.median(clock.seconds(call) for _ in range(CALLS))


def main() -> None:
    """Print {op: seconds}."""
    torch.manual_seed(0)
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for op, function, leaves in ops(dtype):
            if OPS[op.partition(",")[0]]:
                found[f"{op}, {name}"] = seconds(function, leaves)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
