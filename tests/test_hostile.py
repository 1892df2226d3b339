"""A few random and hostile calls of every op; `make check-sanitize-all` makes 20,000."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from op_cases import cases
from spanbert_fast._extension import _C
from spanbert_fast.ops._register import KERNELS

HERE = Path(__file__).parent
needs_extension = pytest.mark.skipif(_C is None, reason="of compiled code")


def hostile(*arguments, folders=(HERE,)) -> subprocess.CompletedProcess:
    path = os.pathsep.join(map(str, folders))
    return subprocess.run(
        [sys.executable, "-m", "hostile", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def test_each_call_returns_or_raises():
    done = hostile("--calls", "300", "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.startswith("300 calls") and "raised" in done.stdout


def test_what_kills_the_process_or_is_wrong_is_a_failure(tmp_path):
    """The first call ends the process; the others still run."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if '--child' in sys.orig_argv:\n"
        "    import dataclasses, os\n"
        "    from hostile import calls\n"
        "    first = sys.orig_argv[sys.orig_argv.index('--first') + 1] == '0'\n"
        "    def wrong(): raise calls.Wrong('other numbers')\n"
        "    def drawn(draw, make=calls.drawn_call):\n"
        "        return dataclasses.replace(make(draw), make=os.abort if first else wrong)\n"
        "    calls.drawn_call = drawn\n"
    )
    done = hostile("--calls", "3", folders=(tmp_path, HERE))
    assert done.returncode == 1, done.stdout + done.stderr[-3000:]
    assert "the process ended with -6\n  --seed 0 --call 0" in done.stdout
    assert "other numbers\n  --seed 0 --call 2" in done.stdout
    assert "1 died, 2 wrong" in done.stdout


@needs_extension
@pytest.mark.parametrize("seed", [torch.zeros(0, dtype=torch.int64), torch.tensor(1.0)])
@pytest.mark.parametrize("name", ["attention with dropout", "norm", "embedding"])
def test_a_seed_is_one_integer(name, seed):
    case = cases(torch.float32)[name]
    with pytest.raises(ValueError, match="seed must be a 0-dim int64 tensor, got torch"):
        case.outputs(case.inputs._replace(seed=seed))


@needs_extension
@pytest.mark.parametrize("sizes", [[2**62] * 4, [2**63 - 1, 1], [8, -1]])
def test_groups_whose_sum_no_integer_holds(sizes):
    inputs = cases(torch.float32)["loss"].inputs
    rows = torch.zeros(len(sizes), 300)
    with pytest.raises(ValueError, match="group_sizes must"):
        KERNELS["linear_cross_entropy_fwd"](*inputs._replace(group_sizes=sizes, bias=rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vocabulary_that_is_not_there_takes_no_time(dtype):
    """2^40 entries that share one row: without a row to score there is nothing to do, and a bias of
    another length is an error."""
    inputs = cases(dtype)["loss"].inputs
    width = inputs.hidden.shape[1]
    inputs = inputs._replace(
        hidden=inputs.hidden[:0],
        weight=inputs.weight[:1].expand(1 << 40, width),
        targets=inputs.targets[:0],
        group_sizes=[0],
        saved_columns=0,
    )
    composite = KERNELS["linear_cross_entropy_fwd"].composite
    with pytest.raises(ValueError, match="bias must have shape"):
        composite(*inputs)
    losses, *_ = composite(*inputs._replace(bias=inputs.bias[:1, :1].expand(1, 1 << 40)))
    assert losses.shape == (0,)


@needs_extension
def test_span_lengths_that_no_integer_holds():
    case = cases(torch.float32)["sample_spans"]
    names = list(case.inputs._fields)
    law = names.index("number2")  # the first of SpanLaw's fields
    arguments = list(case.inputs)
    arguments[law + 2] = 2**63 - 1  # min_span_words
    with pytest.raises(ValueError, match="min_span_words must be at least 1"):
        case.outputs(tuple(arguments))


SMALLER = {
    "attention": (0, 3, 10, 11),  # dout, v, out, lse
    "norm": (0, 11, 12),  # dy, mean, rstd
    "embedding": (0, 15, 16),
    "gather": (0, 8, 9),
    "loss": (0, 8),  # dlosses, lse; the scores behind them may be fewer
    "antecedents": (0, 7, 8),  # dlosses, lse, gold_lse
    "spans": (0, 7, 8),  # dy, y, lse
}


@pytest.mark.parametrize("composite", [False, True])
@pytest.mark.parametrize("name", SMALLER)
def test_a_backward_reads_no_more_than_there_is(name, composite):
    """Shortened tensors beside the inputs are refused: PyTorch's operators do not check them, and
    broadcast some over rows that are not there."""
    case = cases(torch.float64 if composite else torch.float32)[name]
    outputs = case.outputs()
    arguments = [torch.randn_like(outputs[0]), *case.inputs, *case.saved(outputs)]
    assert max(SMALLER[name]) == len(arguments) - 1 - (name == "loss")
    for place in SMALLER[name]:
        short = arguments[place]
        cut = list(arguments)
        cut[place] = short.narrow(min(1, short.dim() - 1), 0, 0)
        with pytest.raises(ValueError, match=r"must have shape \(.*, got \("):
            case.backward(*cut)
