"""Tiles of the kernels other than attention: block sizes, warps and pipeline stages by chip.

`measured` says where a row comes from: "static" is chosen from registers, shared memory and
instruction counts of the compiled kernel, not yet from a clock.
"""

from typing import NamedTuple

import torch
import triton


class Tile(NamedTuple):
    """What a launcher passes on: constexpr sizes by name, warps, stages, and the row's origin."""

    blocks: dict[str, int]
    num_warps: int
    num_stages: int = 2
    measured: str = "static"


# One program holds a row whole: warps by the padded width, 8 elements to a thread (one 16-byte load
# of 16-bit numbers). A backward of 8,192 columns spills: 64 registers are all that is left.
_ROWS = {256: 1, 512: 2, 1024: 4, 2048: 8, 4096: 16, 8192: 32}


ROW_WARPS = {
    "dropout_add_layer_norm_fwd": _ROWS,
    "dropout_add_layer_norm_bwd": _ROWS,
    "embedding_layer_norm_fwd": _ROWS,
    "embedding_layer_norm_bwd": _ROWS,
    "span_boundary_gather_fwd": _ROWS,
    "span_boundary_gather_bwd": _ROWS,
}

TILES = {
    "bias_gelu_fwd": Tile({"ROWS": 4, "COLUMNS": 1024}, 4),
    "bias_gelu_bwd": Tile({"ROWS": 2, "COLUMNS": 1024}, 4),
    "copy_rows": Tile({"BLOCK": 1024}, 4),
    "place_sums": Tile({"SPANS": 32, "COLUMNS": 64}, 4),
}

# (kernel, bytes of an element) -> by the least compute capability. Products of fp32 are made in
# fp32, without matrix units, so that their tiles are smaller.
_FP32_PRODUCT = Tile({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}, 8)
PRODUCT_TILES = {
    ("linear_cross_entropy_fwd", 2): {
        80: Tile({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, 8, 3),
        90: Tile({"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64}, 8, 3),
    },
    ("score_gradient", 2): {80: Tile({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, 8, 3)},
    ("linear_cross_entropy_fwd", 4): {80: _FP32_PRODUCT},
    ("score_gradient", 4): {80: _FP32_PRODUCT},
}

# for the interpreter, whose time is the number of programs and operations
_INTERPRETED = {
    "bias_gelu_fwd": {"ROWS": 16, "COLUMNS": 64},
    "bias_gelu_bwd": {"ROWS": 16, "COLUMNS": 64},
    "copy_rows": {"BLOCK": 256},
    "place_sums": {"SPANS": 8, "COLUMNS": 32},
    "linear_cross_entropy_fwd": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 16},
    "score_gradient": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 16},
}


def tile(kernel: str, arch: int, *, width: int = 1, itemsize: int = 2) -> Tile:
    """The tile of `kernel` on compute capability `arch` (80, 90, 100; older ones take 80's).

    Args:
        width: of the rows, for kernels that hold a row whole.
        itemsize: bytes of an element, for kernels that make products.
    """
    if kernel in ROW_WARPS:
        block = max(triton.next_power_of_2(width), 256)
        return Tile({}, ROW_WARPS[kernel].get(block, 32))
    if (kernel, itemsize) in PRODUCT_TILES:
        by_arch = PRODUCT_TILES[kernel, itemsize]
        return by_arch[max((a for a in by_arch if a <= arch), default=min(by_arch))]
    return TILES[kernel]


def tile_for(kernel: str, device: torch.device, **facts: int) -> Tile:
    """`tile` of the device's chip; on the CPU small tiles, which the interpreter runs."""
    if device.type == "cpu":
        return Tile(_INTERPRETED.get(kernel, {}), 4)
    major, minor = torch.cuda.get_device_capability(device)
    return tile(kernel, 10 * major + minor, **facts)
