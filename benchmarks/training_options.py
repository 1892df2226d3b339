"""The options of bench_training.py, and the cases that they name."""

import argparse
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results_format import RESULTS
from training_providers import OURS, PEERS, PROVIDERS, Case, lengths_of
from training_work import gpu_shapes
from training_worker import ALLOCATORS

EXAMPLES = """examples:
  python benchmarks/bench_training.py
      4 layers of 768, 8 x 512 tokens, bf16, dropout 0.1, both allocator settings
  python benchmarks/bench_training.py --quick
      the same with two pairs each, and no peer that has to be compiled
  python benchmarks/bench_training.py --lengths full ragged --dtypes bf16 fp32
  python benchmarks/bench_training.py --layers 12 --shapes 8x512 32x128 --dropout 0.1 0
  python benchmarks/bench_training.py --providers hf-eager hf-sdpa --allocators heap-kept --profile
  python benchmarks/bench_training.py --device cuda
      24 layers of 1,024 and 12 of 768, up to 32,768 tokens of 512 and of 128 to a sequence
"""
COMPILED = ("hf-eager-compiled", "hf-sdpa-compiled", "hf-sdpa-max-autotune")
NOT_QUICK = (*COMPILED, "reference", "hf-transformer-engine")


def parser(description: str) -> argparse.ArgumentParser:
    """The script's options."""
    parser = argparse.ArgumentParser(
        prog="bench_training.py",
        description=description,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    peers = [name for name in PROVIDERS if name != OURS]

    def many(name: str, default: Sequence[Any], text: str, **options: Any) -> None:
        parser.add_argument(name, nargs="+", default=default, help=text, **options)

    many("--layers", None, "layers of 768, or layers x width: 12 24x1024", type=_model)
    many("--shapes", None, "sequences x their longest length: 8x512 32x128", type=_shape)
    many("--lengths", ["full"], "full, or ragged as texts are", choices=["full", "ragged"])
    many("--dtypes", ["bf16"], "bf16 is autocast", choices=["bf16", "fp32"])
    many("--dropout", [0.1], "of hidden states and attention", type=float)
    many("--allocators", None, "glibc's malloc (both; one on a GPU)", choices=list(ALLOCATORS))
    many("--providers", None, "peers to measure ours beside (the device's)", choices=peers)
    parser.add_argument("--rounds", type=_count, default=5, help="pairs of each peer (default 5)")
    parser.add_argument(
        "--budget", type=float, default=15, help="seconds after which 2 pairs are enough (15)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--time-limit", type=float, help="seconds for everything; peers past it are left out"
    )
    parser.add_argument("--threads", type=_count, default=2, help="of each process (default 2)")
    parser.add_argument("--quick", action="store_true", help="2 pairs, peers that start at once")
    parser.add_argument("--tiny", action="store_true", help="2 layers of 128, 3 x 48 tokens")
    parser.add_argument("--profile", action="store_true", help="print where our step's time goes")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "training.json", help="the JSON file"
    )
    return parser


def _shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or int(match[1]) < 1 or int(match[2]) < 3:
        raise argparse.ArgumentTypeError(f"must be like 8x512, got {text!r}")
    return int(match[1]), int(match[2])


def _model(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    width = int(match[2] or 768) if match else 0
    if match is None or int(match[1]) < 1 or width < 64 or width % 64:
        raise argparse.ArgumentTypeError(f"must be like 12 or 24x1024, got {text!r}")
    return int(match[1]), width


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def with_defaults(options: argparse.Namespace) -> argparse.Namespace:
    """The options, with the device's defaults for those that were not given."""
    on_gpu = options.device == "cuda"
    if options.quick:
        options.rounds, options.budget = 2, 0.0
    options.layers = options.layers or ([(24, 1024), (12, 768)] if on_gpu else [(4, 768)])
    options.allocators = options.allocators or (["default"] if on_gpu else list(ALLOCATORS))
    if options.shapes is None:
        options.shapes = [(8, 512)]
        if on_gpu:
            import torch

            options.shapes = gpu_shapes(torch.cuda.get_device_properties(0).total_memory)
    if options.providers is None:
        skipped = NOT_QUICK if options.quick else ()
        options.providers = [peer for peer in PEERS[options.device] if peer not in skipped]
    return options


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """The cases of all combinations of the options."""
    documents: list[str] = []
    if "ragged" in arguments.lengths:
        from spanbert_fast.data.embedded import embedded_documents  # takes seconds

        documents = embedded_documents()
    sizes = {"vocab_size": 1000} if arguments.tiny else {}
    models = [(2, 128)] if arguments.tiny else arguments.layers
    shapes = [(3, 48)] if arguments.tiny else arguments.shapes
    cases = []
    sizes["device"] = arguments.device
    for (count, width), (batch, seqlen), kind, dtype, dropout in itertools.product(
        models, shapes, arguments.lengths, arguments.dtypes, arguments.dropout
    ):
        full = (seqlen,) * batch
        lengths = full if kind == "full" else lengths_of(documents, batch, seqlen)
        cases.append(Case(count, seqlen, lengths, dtype, dropout, width, **sizes))
    return cases
