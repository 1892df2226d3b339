"""The steps of gpu_check.py in order: first those that prove the engine, then measuring and tuning.

The limits of a part add up to less than ten minutes; they are about twice what a step should take
on sixteen cores and a large GPU.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
# In the order of their share of a training step's time; each is tried with ten tiles.
TUNED_KERNELS = (
    "varlen_attention_fwd",
    "attention_one_tile",
    "attention_one_program",
    "attention_dk_dv",
    "attention_dq",
    "linear_cross_entropy_fwd",
    "score_gradient",
    "dropout_add_layer_norm_fwd",
    "dropout_add_layer_norm_bwd",
)


class Place(NamedTuple):
    """Folders for the results, for the built package, and for the files that steps write."""

    out: Path
    site: Path
    work: Path


class Step(NamedTuple):
    """A process to run.

    Attributes:
        name: its name, also in the results.
        part: 1 proves, 2 measures, 3 tunes.
        seconds: it is killed after these.
        command: what to run, at the root of the checkout.
        writes: the stem of the JSON file that it leaves in the work folder.
        needs: names of steps that must have ended, passed or not.
        program: a program that it needs on the PATH.
        always: it runs first in every run, since the machine may be another one.
        variables: environment variables.
    """

    name: str
    part: int
    seconds: int
    command: tuple[str, ...]
    writes: str | None = None
    needs: tuple[str, ...] = ()
    program: str | None = None
    always: bool = False
    variables: tuple[tuple[str, str], ...] = ()


def marked_tests() -> list[str]:
    """The test files that are marked for a GPU, found by their text: collecting the others would
    import packages that bare GPU images do not have."""
    mark = "\npytestmark = pytest.mark.gpu\n"
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [f"tests/{f.name}" for f in files if mark in f.read_text(encoding="utf-8")]


def plan(place: Place, facts: Mapping[str, Any], tiny: bool) -> list[Step]:
    """The steps for a machine.

    Args:
        place: folders.
        facts: the GPU's `chip`, as 90 for sm_90, and bytes of `memory`.
        tiny: on the CPU, every step as short as possible; nothing is tuned.
    """
    device = ("--device", "cpu" if tiny else "cuda")
    small = ("--tiny",) * tiny

    def script(name: str, *options: str) -> tuple[str, ...]:
        return (sys.executable, str(FOLDER / name), *options)

    def output(stem: str) -> tuple[str, str]:
        return ("--output", str(place.work / f"{stem}.json"))

    def probe(name: str, *options: str) -> tuple[str, ...]:
        return script("gpu_probes.py", name, *small, *options)

    def training(stem: str, limit: int, *options: str) -> tuple[str, ...]:
        rounds = ("--rounds", "5", "--budget", "6", "--time-limit", str(limit))
        rounds += ("--allocators", "default")
        return script("bench_training.py", *device, *small, *rounds, *output(stem), *options)

    def sanitizer(tool: str) -> tuple[str, ...]:
        program = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "3")
        suite = script("op_suite.py", *device, "--tiny", "--quick", "--check-only", *output(tool))
        return (*program, *suite)

    workers = () if tiny else ("-n", str(min(8, os.cpu_count() or 1)))
    files = marked_tests()[:1] if tiny else marked_tests()
    pytest = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider")
    # a read past a tensor would stay within the block of PyTorch's cache
    uncached = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    build = ("--site", str(place.site), "--out", str(place.out), "--chip", str(facts["chip"]))
    checkers = max(1, min(10, os.cpu_count() or 1, facts["memory"] >> 33))  # of 8 GiB each
    large, base = ("--layers", "24x1024"), ("--layers", "12")
    peers = ("--providers", "hf-sdpa-flash", "hf-sdpa-cudnn", "ours-eager")
    slow = ("hf-sdpa-max-autotune", "hf-transformer-engine")
    steps = [
        Step("build", 1, 140, probe("build", *build, *output("environment")), "environment",
             always=True),
        Step("races", 1, 50, probe("races")),
        Step("steps", 1, 60, probe("steps")),
        Step("tests", 1, 140, (*pytest, *workers, *files)),
        Step("memcheck", 1, 90, sanitizer("memcheck"), "memcheck",
             program="compute-sanitizer", variables=uncached),
        Step("racecheck", 1, 90, sanitizer("racecheck"), "racecheck",
             program="compute-sanitizer"),
        Step("ceilings", 2, 20, script("ceilings.py", *device, *small, *output("ceilings")),
             "ceilings"),
        Step("host_cost", 2, 40, script("host_cost.py", *device, *small, *output("host_cost")),
             "host_cost"),
        Step("training", 2, 190, training("training", 175, *peers, *large), "training"),
        Step("training_base", 2, 120, training("training_base", 105, *peers, *base),
             "training_base"),
        Step("ops", 2, 190, script("op_suite.py", *device, *small, "--budget", "170",
                                   *output("ops")), "ops"),
        Step("tune", 3, 250, script("tune.py", "--kernel", *TUNED_KERNELS, "--candidates", "10",
                                    "--processes", str(checkers),
                                    *output("tuned")), "tuned"),
        Step("training_tuned", 3, 140,
             training("training_tuned", 125, *peers[:2], *large),
             "training_tuned", ("tune",)),
        Step("training_compiled", 3, 160,
             training("training_compiled", 150, "--providers", *(peers[1:2] if tiny else slow),
                      *base),
             "training_compiled"),
    ]  # fmt: skip
    if not tiny:
        return steps
    patient = [step._replace(seconds=10 * step.seconds) for step in steps]  # any CPU will do
    return [step for step in patient if "tune" not in (step.name, *step.needs)]
