#!/usr/bin/env python3
"""Compiles every Triton kernel for each chip, without a GPU, and prints the resources of each."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE.parent]
sys.path.insert(0, str(HERE))
os.environ.pop("TRITON_INTERPRET", None)  # Triton reads it once, at its import

import triton
from kernel_cases import DTYPES, OPS, Case, cases
from kernel_resources import CHIPS, Resources, problems, resources
from tqdm import tqdm

EXAMPLES = """examples:
  python benchmarks/kernel_report.py                            everything: 1,000 kernels
  python benchmarks/kernel_report.py --arch 90 --op bias_gelu   one op on one chip
  python benchmarks/kernel_report.py --arch 90 --dtype bf16 --loops
                                                                and what the inner loops consist of

exit code: 1 where a kernel spills, takes more shared memory than the chip has, or multiplies 16-bit
numbers without matrix instructions; compiled kernels stay in Triton's cache."""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="kernel_report.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=list(CHIPS), default=list(CHIPS))
    parser.add_argument("--op", nargs="+", choices=list(OPS), default=list(OPS))
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument(
        "--launch",
        nargs="+",
        default=[""],
        metavar="WORDS",
        help="only launches that are described by one of these, as 'width 1024' or dropout",
    )
    parser.add_argument("--loops", action="store_true", help="print the inner loops' instructions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    return parser.parse_args(argv)


def measured(chosen: Sequence[Case]) -> list[tuple[Case, Resources]]:
    """Each case with its resources, under a progress bar."""
    bar = tqdm(chosen, unit=" kernels", disable=None)
    return [(case, resources(case)) for case in bar]


def loop_line(case: Case, found: Resources) -> str:
    """Instructions of the inner loop, per thread and per element of a (BLOCK_M, BLOCK_N) tile."""
    counts = sorted(found.loop.items(), key=lambda item: -item[1])
    line = "    loop: " + ", ".join(f"{n} {name}" for name, n in counts)
    blocks = case.blocks
    if "BLOCK_M" in blocks and "BLOCK_N" in blocks:
        elements = blocks["BLOCK_M"] * blocks["BLOCK_N"] / (32 * case.options["num_warps"])
        line += f"; {sum(found.loop.values()) / elements:.2f} per element of the tile"
    return line


def line(case: Case, found: Resources) -> str:
    """A row of the table."""
    blocks = " ".join(f"{name.lower()} {size}" for name, size in case.blocks.items())
    tile = f"{case.options['num_warps']} warps, {blocks}".rstrip(", ")
    return (
        f"{case.kernel:<27}{case.dtype:<6}{case.chip:>4}{found.registers:>6}"
        f"{found.shared / 1024:>9.1f}{found.occupancy:>7}{found.spills:>8}"
        f"  {found.matrix or '-':<17}{sum(found.loop.values()):>6}  {tile}; {case.launch}"
    )


def report(results: Sequence[tuple[Case, Resources]], loops: bool) -> str:
    """The table, by kernel."""
    lines = [
        f"{'kernel':<27}{'dtype':<6}{'sm':>4}{'regs':>6}{'smem KiB':>9}{'blocks':>7}{'spills':>8}"
        f"  {'matrix':<17}{'loop':>6}  tile; launch"
    ]
    for case, found in sorted(results, key=lambda r: (r[0].op, r[0].kernel, r[0].chip)):
        lines.append(line(case, found))
        if loops and found.loop:
            lines.append(loop_line(case, found))
        lines += [f"    broken: {what}" for what in problems(case, found)]
    return "\n".join(lines)


def record_of(case: Case, found: Resources) -> dict:
    """A case and its resources for JSON."""
    names = ("op", "kernel", "launch", "dtype", "chip", "blocks", "options")
    return {
        **{name: getattr(case, name) for name in names},
        **asdict(found),
        "problems": problems(case, found),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if a limit is broken."""
    options = arguments(argv)

    def wanted(launch: str) -> bool:
        return any(words in launch for words in options.launch)

    chosen = [
        case for chip in options.arch for case in cases(chip, options.op, options.dtype, wanted)[0]
    ]
    if not chosen:
        sys.exit(f"kernel_report.py: no launch is described by {options.launch}")
    results = measured(chosen)
    print(f"triton {triton.__version__}, {len(results)} kernels, compiled, not run\n")
    print(report(results, options.loops))
    if options.json:
        content = {"triton": triton.__version__, "kernels": [record_of(*r) for r in results]}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    broken = sum(bool(problems(*result)) for result in results)
    print(f"\n{broken} of {len(results)} kernels break a limit")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
