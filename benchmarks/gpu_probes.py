#!/usr/bin/env python3
"""Steps of gpu_check.py beside tests and benchmarks: the build, races, host waits and captures.

python benchmarks/gpu_probes.py build --site build/gpu_check/site --out build/gpu_check --chip 90
python benchmarks/gpu_probes.py races
python benchmarks/gpu_probes.py steps
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import torch

# shares of the kernels to compile, about equal, each for two dtypes: twelve processes
WARMED = (
    ("varlen_attention",),
    ("linear_cross_entropy",),
    ("dropout_add_layer_norm",),
    ("embedding_layer_norm",),
    ("span_boundary_gather",),
    ("bias_gelu", "padding", "adamw"),
)
COMPILED_CHIPS = (80, 90, 100)  # for these kernel_report.py compiles what a launch looks up
_MOST_APART = 2e-2  # share of a gradient's norm by which two kernels in 16 bits may differ
_MOST_LOSS_APART = 1e-3


def extension_key() -> str:
    """A key of the sources, Python, torch and its CUDA; a built extension serves an equal key."""
    digest = hashlib.sha256(f"{sys.version} {torch.__version__} {torch.version.cuda}".encode())
    for path in sorted([ROOT / "setup.py", *(ROOT / "csrc").rglob("*.[chu]*")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def warm(chip: int, folder: Path) -> list[subprocess.Popen]:
    """Start compiling every kernel for a chip into Triton's cache."""
    if chip not in COMPILED_CHIPS:
        print(f"no kernel is compiled ahead for sm_{chip}: its launches do it")
        return []
    started = []
    for ops, dtype in itertools.product(WARMED, ("bf16", "fp32")):
        command = [sys.executable, str(FOLDER / "kernel_report.py"), "--arch", str(chip)]
        command += ["--op", *ops, "--dtype", dtype]
        with open(folder / f"warm-{ops[0]}-{dtype}.txt", "wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        started.append(process)
    return started


def build(site: Path, out: Path, chip: int, output: Path) -> int:
    """Build the extension into `site`, or copy it from `out`, and write the environment.

    The built extension is kept in `out` as extension-KEY.so. Meanwhile Triton's cache is filled.
    """
    kept = out / f"extension-{extension_key()}.so"
    target = site / "spanbert_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    status = 0
    if kept.exists():
        print(f"the extension is that of {kept}")
    else:
        compiling = warm(chip, output.parent)
        folder = ROOT / "build/gpu_check/extension"
        command = [sys.executable, "setup.py", "-q", "build_ext"]
        command += ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "objects")]
        levels = {"SPANBERT_FAST_LEVELS": "native"}
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **levels})
        status = done.returncode
        if status:  # whatever nvcc has against its sources, the CPU's are wanted
            print("WRONG: the extension is not built as it should be; once more without CUDA")
            levels["SPANBERT_FAST_CUDA"] = "0"
            subprocess.run(command, cwd=ROOT, env={**os.environ, **levels})
        for built in (folder / "lib/spanbert_fast").glob("_C*.so"):
            shutil.copy(built, target)
            if not status:
                shutil.copy(built, kept)
        for process in compiling:
            if process.wait():  # a kernel that spills is slow, not wrong
                print(f"ended with {process.returncode}: {' '.join(process.args[1:])}")
    if kept.exists():
        shutil.copy(kept, target)
    command = [sys.executable, "-m", "spanbert_fast", "env", "--json"]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(found.stdout)
    if found.returncode == 0:
        output.write_text(json.dumps(json.loads(found.stdout), indent=1), encoding="utf-8")
    return status or found.returncode


class Heads(NamedTuple):
    """Attention to run repeatedly: sequences, heads, longest length, dtype."""

    sequences: int
    heads: int
    longest: int
    dtype: torch.dtype


RACES = (
    Heads(32, 16, 512, torch.bfloat16),  # a head by one program, whose sums go through the L2
    Heads(64, 12, 384, torch.float16),
    Heads(256, 16, 128, torch.bfloat16),  # a head by one tile
    Heads(3, 2, 512, torch.bfloat16),  # too few for that: tiles of a head by several programs
)
TINY_RACES = (Heads(2, 1, 40, torch.bfloat16),)


@contextlib.contextmanager
def other_work(device: str):
    """A function that keeps the rest of the GPU, and its L2 cache, busy."""
    if device == "cpu":
        yield lambda: None
        return
    stream, noise = torch.cuda.Stream(), torch.empty(1 << 26, device=device)
    factor = torch.randn(2048, 2048, device=device, dtype=torch.bfloat16)

    def start() -> None:
        with torch.cuda.stream(stream):
            noise.add_(1)
            factor @ factor

    yield start
    torch.cuda.synchronize()


def moved(call: Callable[[], Sequence[torch.Tensor]], repeats: int, device: str) -> int:
    """How many results of repeated calls differ from the first one in any bit."""
    first, count = call(), 0
    with other_work(device) as start:
        for _ in range(repeats):
            start()
            count += sum(not torch.equal(a, b) for a, b in zip(call(), first, strict=True))
    return count


def races(device: str, cases: Sequence[Heads] = RACES, repeats: int = 50) -> list[str]:
    """Faults: attention that gives other bits when it runs again, or gradients that differ from
    those of the kernels whose programs share nothing."""
    from spanbert_fast.kernels.tile_config import Tile, forced_tile
    from spanbert_fast.ops.dropout import Dropout
    from spanbert_fast.ops.varlen_attention import varlen_attention

    wrong = []
    for case, p in itertools.product(cases, (0.0, 0.1)):
        lengths = torch.randint(case.longest // 4, case.longest + 1, (case.sequences,))
        lengths[0] = case.longest
        bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int().to(device)
        shape = (int(lengths.sum()), case.heads, 64)
        *leaves, dout = (torch.randn(shape, device=device).to(case.dtype) for _ in range(4))
        leaves = [leaf.requires_grad_() for leaf in leaves]
        dropout = Dropout(p, torch.tensor(7, device=device), 3)

        def call(leaves=leaves, dout=dout, bounds=bounds, dropout=dropout, n=case.longest):
            out = varlen_attention(*leaves, bounds, n, dropout=dropout)
            return out.detach(), *torch.autograd.grad(out, leaves, dout)

        count = moved(call, repeats, device)
        ours = call()
        with contextlib.ExitStack() as tiled:
            for kernel, block in (("attention_one_program", "BLOCK_N"),
                                  ("attention_one_tile", "BLOCK")):  # fmt: skip
                tiled.enter_context(forced_tile(kernel, Tile({"BLOCK_M": 0, block: 0}, 4)))
            others = call()
        apart = max(
            ((a.double() - b.double()).norm() / b.double().norm()).item()
            for a, b in zip(ours, others, strict=True)
        )
        text = f"{tuple(case)}, dropout {p}: {count} results moved, {apart:.1e} from tiles"
        print(text, flush=True)
        if count or not apart <= _MOST_APART:
            wrong.append(text)
    return wrong


def losses_of(train: Callable[[int], torch.Tensor], steps: int = 4) -> list[float]:
    """The losses of some steps, each with its own dropout seed."""
    return [train(seed).item() for seed in range(steps)]


def steps(device: str, tiny: bool) -> list[str]:
    """Faults: a step that waits for the GPU, or captured steps whose losses differ from those of
    the same steps launched kernel by kernel."""
    from training_check import precision, redraw
    from training_providers import Batch, Case, provider_of

    from spanbert_fast.optim import AdamW
    from spanbert_fast.training.captured_step import CapturedStep

    size = {"hidden_size": 64, "vocab_size": 500} if tiny else {}
    lengths = (16, 9) if tiny else (512, 300, 77, 512)
    case = Case(2, max(lengths), lengths, device=device, **size)
    batch = Batch.of(case).packed

    def fresh(ours: bool = False):
        model = provider_of("ours", case).model.train()
        redraw(model)  # large weights: another mask would show in the loss
        if ours:
            return model, AdamW(model.parameters(), lr=1e-3, keep_rounded=True)
        options = {"lr": 1e-3, "fused": True, "capturable": device == "cuda"}
        return model, torch.optim.AdamW(model.parameters(), **options)

    def seeded(seed: int) -> dict:
        return batch | {"dropout_seed": torch.tensor(seed, device=device)}

    def eager(model, optimizer, inputs: dict) -> torch.Tensor:
        with precision(case.dtype, device):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    model, optimizer = fresh()
    expected = losses_of(lambda seed: eager(model, optimizer, seeded(seed)))
    print("launched one by one:", expected, flush=True)
    wrong = [] if len(set(expected)) == len(expected) else ["losses do not change"]
    if device == "cpu":
        again = fresh(ours=True)
        got = losses_of(lambda seed: eager(*again, seeded(seed)))
    else:
        inputs = seeded(9)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            eager(model, optimizer, inputs)
        except RuntimeError as error:
            wrong.append(f"a step waits for the GPU: {error}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        model, optimizer = fresh(ours=True)
        options = {"autocast": lambda: precision(case.dtype, device), "max_grad_norm": 1.0}
        run = CapturedStep(model, optimizer, seeded(0), **options)
        got = losses_of(lambda seed: run(seeded(seed))["loss"])
    print("again, in one graph on a GPU:", got, flush=True)
    apart = max(abs(a - b) / abs(b) for a, b in zip(got, expected, strict=True))
    if not apart <= _MOST_LOSS_APART:
        wrong.append(f"losses are {apart:.1e} apart")
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if there is a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("probe", choices=("build", "races", "steps"))
    add("--tiny", action="store_true", help="on the CPU, at tiny shapes")
    add("--site", type=Path, help="build: folder of the package")
    add("--out", type=Path, help="build: folder that keeps the extension")
    add("--chip", type=int, default=0, help="build: as 90 for sm_90")
    add("--output", type=Path, help="build: file for the environment")
    options = parser.parse_args(argv)
    if options.probe == "build":
        return build(options.site, options.out, options.chip, options.output)
    device = "cpu" if options.tiny else "cuda"
    if options.probe == "races":
        wrong = races(device, TINY_RACES, 3) if options.tiny else races(device)
    else:
        wrong = steps(device, options.tiny)
    for text in wrong:
        print(f"WRONG: {text}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
