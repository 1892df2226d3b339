#!/usr/bin/env python3
"""Times candidate tiles of the Triton kernels on this GPU and writes the fastest to tuned.json.

A candidate is timed only if its results are right: at most twice as far from fp64 as PyTorch's in
the same dtype. The whole op is timed, with a cold L2 cache, in rounds of all candidates.
"""

import argparse
import dataclasses
import datetime
import functools
import importlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE.parent]
sys.path.insert(0, str(HERE))

import torch
from op_case import OURS, OpCase
from timing import Clock, clock_of, interleaved, quartiles
from tqdm import tqdm
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError
from tune_candidates import Checkers, nearest
from tuned_rows import write_rows

from spanbert_fast.kernels import tile_config
from spanbert_fast.kernels.tile_config import Tile, forced_tile

EXAMPLES = """examples:
  python benchmarks/tune.py                               every kernel, about 20 candidates each
  python benchmarks/tune.py --kernel copy_rows --dry-run  one kernel, and nothing is written

exit code: 1 where a kernel could not be tuned, 2 without a GPU."""
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes that a block may have
_BUDGET = 20.0  # seconds of one kernel's rounds


class Target(NamedTuple):
    """A kernel, the op's benchmark that times it, and the sizes to try."""

    op: str
    backward: bool
    variants: tuple[str, ...]
    blocks: dict[str, tuple[int, ...]]
    warps: tuple[int, ...] = (2, 4, 8)
    stages: tuple[int, ...] = (2,)


_PRODUCT = {"BLOCK_M": (64, 128), "BLOCK_N": (64, 128, 256), "BLOCK_K": (32, 64)}
_TILED = {"BLOCK_M": (32, 64, 128), "BLOCK_N": (64, 128)}
_BOTH = ("bf16", "fp32")
_LENGTHS = ("bf16, 128, p=.1", "bf16, 512, p=.1")
_LONG = ("bf16, 2048, p=.1",)  # a row for 512 tokens would take these kernels' place there


def _whole_rows(op: str, variant: str = "bf16") -> dict[str, Target]:
    warps = (1, 2, 4, 8, 16)
    return {
        f"{op}_fwd": Target(op, False, (variant,), {}, warps),
        f"{op}_bwd": Target(op, True, (variant,), {}, warps),
    }


TARGETS: dict[str, Target] = {
    "bias_gelu_fwd": Target(
        "bias_gelu", False, ("bf16",), {"ROWS": (1, 2, 4, 8), "COLUMNS": (512, 1024, 2048)}
    ),
    "bias_gelu_bwd": Target(
        "bias_gelu", True, ("bf16",), {"ROWS": (1, 2, 4, 8), "COLUMNS": (256, 512, 1024)}
    ),
    "column_sums": Target(
        "bias_gelu", True, ("bf16",), {"ROWS": (32, 64, 128), "COLUMNS": (16, 32, 64)}
    ),
    "copy_rows": Target("padding", False, ("bf16, unpad",), {"BLOCK": (256, 512, 1024, 2048)}),
    "place_sums": Target(
        "span_boundary_gather", True, ("bf16",), {"SPANS": (16, 32, 64), "COLUMNS": (32, 64, 128)}
    ),
    **_whole_rows("dropout_add_layer_norm", "bf16, p=.1"),
    **_whole_rows("embedding_layer_norm"),
    **_whole_rows("span_boundary_gather"),
    "span_representation": Target(
        "span_representation", True, ("bf16",), {"BLOCK": (128, 256, 512)}, (1, 2, 4)
    ),
    "antecedent_pairs": Target("antecedent_loss", False, _BOTH, _PRODUCT, (4, 8), (2, 3)),
    "antecedent_gradient": Target("antecedent_loss", True, _BOTH, _PRODUCT, (4, 8), (2, 3)),
    "antecedent_top_k_fwd": Target(
        "antecedent_top_k", False, ("bf16, 1",), _PRODUCT, (4, 8), (2, 3)
    ),
    "join_parts": Target("linear_cross_entropy", False, ("bf16",), {"BLOCK": (64, 128, 256)}),
    "linear_cross_entropy_fwd": Target(
        "linear_cross_entropy", False, _BOTH, _PRODUCT, (4, 8), (2, 3, 4)
    ),
    "score_gradient": Target("linear_cross_entropy", True, _BOTH, _PRODUCT, (4, 8), (2, 3, 4)),
    "varlen_attention_fwd": Target("varlen_attention", False, _LENGTHS, _TILED, (4, 8), (1, 2, 3)),
    "attention_one_tile": Target(
        "varlen_attention", True, _LENGTHS[:1], {"BLOCK": (64, 128)}, (4, 8)
    ),
    "attention_one_program": Target("varlen_attention", True, _LENGTHS[1:], _TILED, (4, 8), (1, 2)),
    "attention_dk_dv": Target("varlen_attention", True, _LONG, _TILED, (4, 8), (1, 2)),
    "attention_dq": Target("varlen_attention", True, _LONG, _TILED, (4, 8), (1, 2)),
}


def candidates(target: Target, current: Tile, itemsize: int, chip: int) -> list[Tile]:
    """The tiles to time, the current one first.

    A product whose operands do not fit in shared memory is left out, and so is a tile with more
    than 256 elements per thread.
    """
    found = [current._replace(measured="static")]
    for sizes in itertools.product(*target.blocks.values()):
        blocks = dict(zip(target.blocks, sizes, strict=True))
        for warps, stages in itertools.product(target.warps, target.stages):
            elements = math.prod(blocks[name] for name in blocks.keys() - {"BLOCK_K"})
            m, n, k = (blocks.get(f"BLOCK_{side}", 0) for side in "MNK")
            operands = stages * (m + n) * k * itemsize
            fits = operands <= SHARED[chip] and elements <= 256 * 32 * warps
            candidate = Tile(blocks, warps, stages)
            if fits and candidate[:3] != found[0][:3]:
                found.append(candidate)
    return found


def facts_of(kernel: str, call: Callable[[], object]) -> dict[str, int] | None:
    """The facts of the input with which a call's launcher asks for the kernel's tile; None if it
    does not launch the kernel."""
    told: dict[str, dict[str, int]] = {}
    choose = tile_config.tile

    def chosen(name: str, chip: int, **facts: int) -> Tile:
        told.setdefault(name, facts)
        return choose(name, chip, **facts)

    with mock.patch.object(tile_config, "tile", chosen):
        call()
    return told.get(kernel)


def case_of(target: Target, variant: str, device: str, size: str) -> OpCase:
    """The benchmark's case with only ours and the baseline of its errors."""
    case = importlib.import_module(f"bench_{target.op}").case(variant, device, size)
    kept = {name: case.providers[name] for name in (OURS, case.baseline)}
    return dataclasses.replace(case, providers=kept)


def is_right(target: Target, variant: str, device: str, size: str) -> bool:
    """Whether the op's results with the forced tile are as near to fp64 as they must be."""
    share = case_of(target, variant, device, size).errors(target.backward)[OURS]
    if isinstance(share, Exception):
        raise share
    return share <= 1


def right_ones(
    kernel: str, variant: str, tiles: Iterable[Tile], device: str, size: str
) -> Iterator[Tile]:
    """The tiles that fit the chip and give right results; says why others do not."""
    for tile in tiles:
        try:
            with forced_tile(kernel, tile):
                if is_right(TARGETS[kernel], variant, device, size):
                    yield tile
                else:
                    tqdm.write(f"{kernel}: {tile} is WRONG and left out")
        except torch.AcceleratorError:  # the GPU is lost to this process
            raise
        except (OutOfResources, PTXASError, CompilationError, RuntimeError) as error:
            tqdm.write(f"{kernel}: {tile} is left out: {str(error).splitlines()[0]}")


def tuned_row(
    kernel: str,
    variant: str,
    clock: Clock,
    chip: int,
    device: str = "cuda",
    sizes: tuple[str, str] = ("cpu", "cuda"),
    limit: int | None = None,
    checkers: Checkers | None = None,
) -> tuple[dict, float] | None:
    """(a row of tuned.json, how many times as fast as the current tile it is); None if no launch
    takes the kernel.

    Args:
        sizes: sizes of the benchmark's cases on which candidates are checked and timed.
        limit: the most candidates, those nearest to the current tile.
        checkers: processes that check them; None for this one.
    """
    target = TARGETS[kernel]
    call = case_of(target, variant, device, sizes[1]).call(OURS, target.backward)
    facts = facts_of(kernel, call)
    if facts is None:
        return None
    row = tile_config.row_of(kernel, chip, **facts)
    tiles = candidates(target, row.tile, 4 if variant.startswith("fp32") else 2, chip)
    tiles = nearest(tiles, limit)
    if checkers is None:
        tiles = list(right_ones(kernel, variant, tiles, device, sizes[0]))
    else:
        tiles = list(checkers.right_ones(kernel, variant, tiles, device, sizes))

    def run(tile: Tile) -> object:
        with forced_tile(kernel, tile):
            return call()

    calls = {str(i): functools.partial(run, tile) for i, tile in enumerate(tiles)}
    if not calls:
        raise RuntimeError(f"{kernel}: no tile gives right results")
    seconds = [quartiles(times)[1] for times in interleaved(calls, clock, _BUDGET).values()]
    best = seconds.index(min(seconds))
    where = torch.cuda.get_device_name() if device == "cuda" else device
    fastest = tiles[best]._replace(measured=f"{where}, {datetime.date.today()}")
    entry = {"kernel": kernel, "chip": chip, "facts": row.facts, **fastest._asdict()}
    return entry, seconds[0] / seconds[best]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="tune.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--kernel",
        nargs="+",
        choices=list(TARGETS),
        default=list(TARGETS),
        metavar="NAME",
        help=f"of {', '.join(TARGETS)}",
    )
    parser.add_argument("--candidates", type=int, metavar="N", help="at most N for each kernel")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="that check candidates at once (1)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=tile_config.TUNED_FILE,
        metavar="FILE",
        help="merge the rows into this one (default: the package's tuned.json)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print, and write nothing")
    options = parser.parse_args(argv)
    if options.candidates is not None and options.candidates < 1:
        parser.error(f"--candidates must be positive, got {options.candidates}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """0, 1 if a kernel could not be tuned, or 2 if there is no GPU."""
    options = arguments(argv)
    if not torch.cuda.is_available():
        print("tune.py: times need an NVIDIA GPU, and there is none", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    clock, chip = clock_of("cuda"), tile_config.chip_of(torch.device("cuda"))
    jobs = [(kernel, variant) for kernel in options.kernel for variant in TARGETS[kernel].variants]
    rows: list[dict] = []
    failed = 0
    checkers = Checkers(options.processes) if options.processes > 1 else None
    for kernel, variant in tqdm(jobs, unit=" kernels", disable=None):
        try:
            found = tuned_row(
                kernel, variant, clock, chip, limit=options.candidates, checkers=checkers
            )
        except torch.AcceleratorError:  # the GPU is lost to this process
            raise
        except RuntimeError as error:  # the other kernels are tuned
            failed += 1
            tqdm.write(f"{kernel}, {variant}: {error}")
            continue
        if found is None:
            tqdm.write(f"{kernel}: {variant} does not launch it")
            continue
        row, gain = found
        tqdm.write(f"{kernel}, {variant}: {gain:.3f} times as fast, {json.dumps(row)}")
        rows.append(row)
        if not options.dry_run:
            write_rows(options.output, rows)
    if checkers is not None:
        checkers.close()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
