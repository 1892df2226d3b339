"""Which tiles tune.py tries if it may try only a few, and their check in several processes."""

import concurrent.futures
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from spanbert_fast.kernels.tile_config import Tile


def distance(tile: Tile, other: Tile) -> float:
    """The distance of two tiles of a kernel: doublings of sizes and warps, plus stages."""
    sizes = [(size, other.blocks[name]) for name, size in tile.blocks.items()]
    sizes.append((tile.num_warps, other.num_warps))
    doublings = sum(abs(math.log2(max(a, 1) / max(b, 1))) for a, b in sizes)
    return doublings + abs(tile.num_stages - other.num_stages)


def nearest(tiles: Sequence[Tile], limit: int | None) -> list[Tile]:
    """The first tile, which is the current one, and those nearest to it."""
    return sorted(tiles, key=lambda tile: distance(tile, tiles[0]))[:limit]


def _check(kernel: str, variant: str, tile: Tile, device: str, sizes: tuple[str, str]) -> bool:
    """Whether a tile is right. Runs in a process of its own and leaves the compiled kernels of both
    sizes in Triton's cache, for the process that times them."""
    import tune

    from spanbert_fast.kernels.tile_config import forced_tile

    if not list(tune.right_ones(kernel, variant, [tile], device, sizes[0])):
        return False
    with forced_tile(kernel, tile):
        tune.case_of(tune.TARGETS[kernel], variant, device, sizes[1]).call(
            tune.OURS, tune.TARGETS[kernel].backward
        )()
    return True


class Checkers:
    """Processes that check tiles, most of whose time goes into compiling.

    Args:
        processes: their number; each needs some gigabytes of the GPU's memory.
    """

    def __init__(self, processes: int):
        self._processes, self._pool = processes, None

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def right_ones(
        self, kernel: str, variant: str, tiles: Sequence[Tile], device: str, sizes: tuple[str, str]
    ) -> Iterator[Tile]:
        """The tiles that fit the chip and give right results, in their order."""
        if self._pool is None:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self._processes, mp_context=multiprocessing.get_context("spawn")
            )
        found = [self._pool.submit(_check, kernel, variant, tile, device, sizes) for tile in tiles]
        lost = False
        for tile, future in zip(tiles, found, strict=True):
            try:
                if future.result():
                    yield tile
            except (RuntimeError, BrokenProcessPool) as error:
                lost = True  # the GPU, to the process that ran it
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                tqdm.write(f"{kernel}: {tile} is left out: {reason}")
        if lost:
            self.close()
