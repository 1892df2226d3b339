"""The package installed from a wheel without the extension, and imported outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import spanbert_fast as sb
    assert not caught, "the ops have not been used"
    sb.ops.bias_gelu
assert sb.__file__.startswith({target!r}), sb.__file__
assert any("without its compiled extension" in str(w.message) for w in caught), caught
import sys, torch
from spanbert_fast.ops._implementations import implementations
named = {{entry.op: entry.name for entry in implementations()}}
assert named["sample_spans"] == "reference", named
assert "torch._dynamo" not in sys.modules, "it loads for seconds, and no op needs it"
model = sb.SpanBertForPreTraining(sb.SpanBertConfig(
    vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
sample = sb.sample_spans(
    torch.arange(5, 35), torch.tensor([0, 30], dtype=torch.int32), torch.ones(30, dtype=torch.bool),
    seed=1, sequence_ids=torch.tensor([0]), mask_token_id=4, random_token_pool=torch.arange(5, 40))
out = model(sample.input_ids, cu_seqlens=torch.tensor([0, 30], dtype=torch.int32),
    mlm_positions=sample.mlm_positions, mlm_targets=sample.mlm_targets,
    span_boundaries=sample.span_boundaries, cu_span_lengths=sample.cu_span_lengths,
    sbo_targets=sample.sbo_targets)
out.loss.backward()
print("loss", float(out.loss.detach()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A pure-PyTorch wheel, built from a copy so that the checkout stays clean."""
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(
        ".venv", "build", "runs", "*.so", "*.egg-info", ".git", "__pycache__"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--wheel-dir", str(folder), str(source)],
        check=True,
        env={**os.environ, "SPANBERT_FAST_NO_EXTENSION": "1"},
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("spanbert_fast/py.typed", "spanbert_fast/kernels/__init__.py"):
        assert name in names
    roots = {name.split("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"spanbert_fast"}


def test_it_works_without_the_extension(wheel, tmp_path):
    target = tmp_path / "target"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
        + [str(wheel)],
        check=True,
    )
    script = SCRIPT.format(target=str(target))
    done = subprocess.run(
        # -c alone would put this folder on the path; the target comes before the installed package
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(target)!r})\n{script}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loss ")
