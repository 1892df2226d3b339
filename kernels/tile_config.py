"""Tiles of the kernels: block sizes, warps and pipeline stages, one table per kernel.

`measured` says where a row comes from: "static" is chosen from registers, shared memory and
instruction counts of the compiled kernel (`make kernel-report`), not from measured times. Rows that
`benchmarks/tune.py` has timed are in tuned.json and replace the static ones.
"""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

CHIPS = (80, 90, 100)
TUNED_FILE = Path(__file__).with_name("tuned.json")


class Tile(NamedTuple):
    """Launch parameters: block sizes by name, warps, pipeline stages, and how they were found."""

    blocks: dict[str, int]
    num_warps: int
    num_stages: int = 2
    measured: str = "static"


class Row(NamedTuple):
    """A tile and the launches that may take it: from `chip` on, with facts up to these."""

    tile: Tile
    chip: int = 80
    facts: dict[str, int] = {}


# One program holds a whole row, with 8 elements of the padded width per thread (one 16-byte load of
# 16-bit numbers). A backward pass of 8,192 columns keeps up to 8 numbers per element. The 64
# registers that a thread of 32 warps has do not hold them, so it takes 8 warps with 255 registers.
_NARROW = [Row(Tile({}, w // 256), facts={"width": w}) for w in (256, 512, 1024, 2048, 4096)]
_WHOLE_ROWS = [*_NARROW, Row(Tile({}, 32))]
_WHOLE_ROWS_BACKWARD = [*_NARROW, Row(Tile({}, 8))]


def _product(m: int, n: int, k: int, warps: int, stages: int, chip: int, itemsize: int) -> Row:
    blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
    return Row(Tile(blocks, warps, stages), chip, {"itemsize": itemsize})


# Products of fp32 are computed in fp32 without matrix units, so their tiles are smaller.
_FP32_PRODUCT = _product(64, 64, 32, 8, 2, chip=80, itemsize=4)


def _attention(m: int, n: int, warps: int, *, chip: int, stages: int = 2, **facts: int) -> Row:
    return Row(Tile({"BLOCK_M": m, "BLOCK_N": n}, warps, stages), chip, facts)


def _one_tile(block: int, warps: int, *, chip: int, **facts: int) -> Row:
    return Row(Tile({"BLOCK": block}, warps), chip, facts)


# Without matrix units a thread keeps whole rows of factors, so tiles are small.
_FP32_ATTENTION = _attention(16, 64, 8, chip=80, stages=1)

TABLES: dict[str, list[Row]] = {
    # registers hold a tile of scores, one of distance buckets, and the addresses of its distances
    "antecedent_pairs": [
        _product(64, 64, 64, 4, 2, chip=80, itemsize=2),
        _product(32, 32, 32, 8, 2, chip=80, itemsize=4),
    ],
    # and a tile of the gradient
    "antecedent_gradient": [
        _product(64, 64, 64, 8, 2, chip=80, itemsize=2),
        _product(32, 32, 32, 8, 3, chip=80, itemsize=4),
    ],
    "antecedent_top_k_fwd": [
        _product(64, 64, 64, 8, 2, chip=90, itemsize=2),  # wgmma takes 64 rows
        _product(32, 64, 64, 4, 2, chip=80, itemsize=2),
        _FP32_PRODUCT,
    ],
    "attention_dk_dv": [
        _attention(64, 64, 4, chip=90, itemsize=2, head_block=64),
        _attention(32, 64, 4, chip=80, itemsize=2, head_block=64),
        _attention(64, 64, 8, chip=90, itemsize=2, head_block=128),
        _attention(32, 64, 8, chip=80, itemsize=2, head_block=128),
        _FP32_ATTENTION,
    ],
    "attention_dq": [
        _attention(64, 64, 4, chip=80, itemsize=2, head_block=64),
        _attention(64, 64, 8, chip=90, itemsize=2, head_block=128),
        _attention(64, 64, 8, chip=80, stages=1, itemsize=2, head_block=128),
        _FP32_ATTENTION,
    ],
    "attention_one_program": [
        _attention(32, 128, 8, chip=100, itemsize=2, head_block=64, keys=512),
        _attention(64, 128, 8, chip=90, itemsize=2, head_block=64, keys=512),
        _attention(32, 64, 4, chip=80, itemsize=2, head_block=64, keys=512),
        _attention(0, 0, 4, chip=80),  # not for wider heads and fp32: too few registers
    ],
    "attention_one_tile": [
        _one_tile(64, 4, chip=80, itemsize=2, head_block=64, keys=64),
        _one_tile(128, 8, chip=90, itemsize=2, head_block=64),
        _one_tile(64, 4, chip=80, itemsize=2, head_block=128),
        _one_tile(0, 4, chip=80),  # not for fp32, whose scores do not fit: the other two kernels
    ],
    "bias_gelu_fwd": [Row(Tile({"ROWS": 4, "COLUMNS": 1024}, 4))],
    "bias_gelu_bwd": [Row(Tile({"ROWS": 2, "COLUMNS": 1024}, 4))],
    "column_sums": [Row(Tile({"ROWS": 64, "COLUMNS": 32}, 4))],
    "copy_rows": [Row(Tile({"BLOCK": 1024}, 4))],
    "dropout_add_layer_norm_fwd": _WHOLE_ROWS,
    "dropout_add_layer_norm_bwd": _WHOLE_ROWS_BACKWARD,
    "embedding_layer_norm_fwd": _WHOLE_ROWS,
    "embedding_layer_norm_bwd": _WHOLE_ROWS_BACKWARD,
    "join_parts": [Row(Tile({"BLOCK": 128}, 4))],
    "linear_cross_entropy_fwd": [
        # sm_100 brings the scores back from tensor memory: 256 columns would spill
        _product(128, 128, 64, 8, 3, chip=100, itemsize=2),
        _product(128, 256, 64, 8, 3, chip=90, itemsize=2),
        _product(128, 128, 64, 8, 3, chip=80, itemsize=2),
        _FP32_PRODUCT,
    ],
    "place_sums": [Row(Tile({"SPANS": 32, "COLUMNS": 64}, 4))],
    "score_gradient": [
        _product(128, 128, 64, 8, 3, chip=80, itemsize=2),
        _product(64, 64, 32, 8, 3, chip=100, itemsize=4),  # two stages would spill there
        _FP32_PRODUCT,
    ],
    "span_representation": [Row(Tile({"BLOCK": 256}, 2))],
    "span_boundary_gather_fwd": _WHOLE_ROWS,
    "span_boundary_gather_bwd": _WHOLE_ROWS_BACKWARD,
    "varlen_attention_fwd": [
        _attention(64, 64, 4, chip=80, itemsize=2, head_block=64, keys=64),
        _attention(64, 128, 4, chip=80, itemsize=2, head_block=64, keys=128),
        _attention(64, 128, 4, chip=80, itemsize=2, head_block=64),
        _attention(64, 64, 4, chip=90, itemsize=2, head_block=128),
        _attention(32, 64, 4, chip=80, itemsize=2, head_block=128),
        _attention(16, 64, 8, chip=80, stages=1, head_block=64),
        _attention(16, 64, 16, chip=80, stages=1),
    ],
}

# for the interpreter, whose time grows with the number of programs and operations
_INTERPRETED = {
    "antecedent_gradient": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 16},
    "antecedent_pairs": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 16},
    "antecedent_top_k_fwd": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 16},
    "span_representation": {"BLOCK": 64},
    "attention_dk_dv": {"BLOCK_M": 16, "BLOCK_N": 64},
    "attention_dq": {"BLOCK_M": 16, "BLOCK_N": 64},
    "attention_one_program": {"BLOCK_M": 16, "BLOCK_N": 64},
    "attention_one_tile": {"BLOCK": 64},
    "varlen_attention_fwd": {"BLOCK_M": 16, "BLOCK_N": 64},
    "bias_gelu_fwd": {"ROWS": 16, "COLUMNS": 64},
    "bias_gelu_bwd": {"ROWS": 16, "COLUMNS": 64},
    "column_sums": {"ROWS": 64, "COLUMNS": 32},
    "copy_rows": {"BLOCK": 256},
    "join_parts": {"BLOCK": 128},
    "place_sums": {"SPANS": 8, "COLUMNS": 32},
    "linear_cross_entropy_fwd": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 16},
    "score_gradient": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 16},
}

_forced: dict[str, Tile] = {}


def read_tuned(path: Path) -> dict[str, list[Row]]:
    """The rows of a tuned.json by kernel, none where the file is absent.

    Its entries: {"kernel", "chip", "facts", "blocks", "num_warps", "num_stages", "measured"}.

    Raises:
        ValueError: the file is not such a list, in one line with its name.
    """
    if not path.exists():
        return {}
    tables: dict[str, list[Row]] = {}
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            tile = Tile(*(entry[name] for name in Tile._fields))
            row = Row(tile, entry["chip"], entry["facts"])
            tables.setdefault(entry["kernel"], []).append(row)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a list of tuned rows ({error!r})") from error
    return tables


TUNED = read_tuned(TUNED_FILE)


def rows_of(kernel: str, chip: int) -> list[Row]:
    """The rows of a kernel for a chip in the order in which they are tried.

    A tuned row replaces the static one with the same facts.
    """
    tuned = [row for row in TUNED.get(kernel, []) if row.chip == chip]
    static = [row for row in TABLES[kernel] if row.chip <= chip]
    return [next((t for t in tuned if t.facts == row.facts), row) for row in static]


@functools.cache
def row_of(kernel: str, chip: int, **facts: int) -> Row:
    """The first row of a kernel on a chip of `CHIPS` whose facts cover these.

    Args:
        facts: what the kernel's rows ask for: `width` of the rows, for kernels that hold a row
            whole; `itemsize`, bytes of an element, for kernels that make products; for attention
            `head_block` and `keys`, the padded head dimension and the longest sequence.

    Raises:
        ValueError: no row covers them.
    """
    for row in rows_of(kernel, chip):
        if all(facts[name] <= limit for name, limit in row.facts.items()):
            return row
    raise ValueError(f"{kernel} has no tile for {facts} on sm_{chip}")


def tile(kernel: str, chip: int, **facts: int) -> Tile:
    """The tile of `row_of`."""
    return row_of(kernel, chip, **facts).tile


@functools.cache
def chip_of(device: torch.device) -> int:
    """The chip whose rows a GPU takes: sm_80's for consumer cards, with less shared memory."""
    major, _ = torch.cuda.get_device_capability(device)
    return {9: 90, 10: 100}.get(major, 80)


def tile_for(kernel: str, device: torch.device, **facts: int) -> Tile:
    """`tile` for the device's chip; on the CPU the interpreter's small tiles."""
    if kernel in _forced:
        return _forced[kernel]
    if device.type == "cpu":
        return Tile(_INTERPRETED.get(kernel, {}), 4)
    return tile(kernel, chip_of(device), **facts)


@contextmanager
def forced_tile(kernel: str, tile: Tile) -> Iterator[None]:
    """Every launch of `kernel` inside takes this tile: for tuning and for tests."""
    _forced[kernel] = tile
    try:
        yield
    finally:
        del _forced[kernel]
