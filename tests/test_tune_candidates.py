"""The choice of tiles to try within a limit, and their checks in several processes."""

import concurrent.futures
from pathlib import Path

import pytest

pytest.importorskip("triton")

from spanbert_fast.kernels import tile_config  # noqa: E402
from spanbert_fast.kernels.tile_config import Tile  # noqa: E402

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def test_the_nearest_tiles_come_first(load):
    module = load("tune_candidates")
    tiles = [
        Tile({"M": 64, "N": 64}, 4, 2),
        Tile({"M": 16, "N": 64}, 4, 2),
        Tile({"M": 128, "N": 64}, 4, 2),
        Tile({"M": 128, "N": 128}, 8, 2),
        Tile({"M": 64, "N": 64}, 4, 3),
    ]
    assert [module.distance(tile, tiles[0]) for tile in tiles] == [0, 2, 1, 3, 1]
    assert module.nearest(tiles, 3) == [tiles[0], tiles[2], tiles[4]]
    assert module.nearest(tiles, None) == [tiles[k] for k in (0, 2, 4, 1, 3)]


def test_a_kernel_without_blocks_is_apart_from_those_with(load):
    """A row for a kernel without a tile has sizes of 0."""
    distance = load("tune_candidates").distance
    assert distance(Tile({"M": 0}, 4), Tile({"M": 64}, 4)) == 6


def test_few_candidates_vary_more_than_one_size(load):
    tune, nearest = load("tune"), load("tune_candidates").nearest
    for kernel in load("gpu_plan").TUNED_KERNELS:
        row = tile_config.rows_of(kernel, 90)[0]
        found = nearest(tune.candidates(tune.TARGETS[kernel], row.tile, 2, 90), 10)
        assert found[0][:3] == row.tile[:3] and 2 <= len(found) <= 10
        varied = {(tuple(t.blocks.values()), t.num_warps, t.num_stages) for t in found}
        assert len(varied) == len(found)
        if len(found) == 10:
            assert sum(len({v[k] for v in varied}) > 1 for k in range(3)) > 1, kernel


def test_a_process_that_loses_the_gpu_costs_its_tile(load, monkeypatch, capsys):
    module, pools = load("tune_candidates"), []

    class Threads(concurrent.futures.ThreadPoolExecutor):
        def __init__(self, processes, mp_context):
            super().__init__(processes)
            pools.append(self)

    def check(kernel, variant, tile, device, sizes):
        if tile.num_warps == 8:
            raise RuntimeError("an illegal access\nand where")
        return tile.num_warps != 2

    monkeypatch.setattr(module.concurrent.futures, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(module, "_check", check)
    checkers = module.Checkers(2)
    tiles = [Tile({}, warps) for warps in (4, 2, 8, 16)]
    assert list(checkers.right_ones("k", "bf16", tiles, "cuda", ("a", "b"))) == [tiles[0], tiles[3]]
    assert "an illegal access" in capsys.readouterr().out
    assert list(checkers.right_ones("k", "bf16", tiles[:1], "cuda", ("a", "b"))) == tiles[:1]
    assert len(pools) == 2, "the next kernel's processes are new ones"
    list(checkers.right_ones("k", "bf16", tiles[:1], "cuda", ("a", "b")))
    assert len(pools) == 2
    checkers.close()


def test_a_tile_is_checked_in_a_process_of_its_own(load):
    """This runs on a CPU, where every tile is right."""
    tiles = [Tile({"BLOCK": 256}, 4), Tile({"BLOCK": 512}, 4)]
    checkers = load("tune_candidates").Checkers(1)
    arguments = ("copy_rows", "bf16, unpad", tiles, "cpu", ("tiny", "tiny"))
    assert list(checkers.right_ones(*arguments)) == tiles
    checkers.close()
