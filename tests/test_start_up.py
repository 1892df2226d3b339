"""Which modules an import and --help load, what a type checker sees, errors of missing extras."""

import json
import os
import subprocess
import sys
from pathlib import Path

from spanbert_fast.cli import COMMANDS
from spanbert_fast.tasks import NAMES

ROOT = Path(__file__).resolve().parent.parent
SLOW = ("torch", "transformers", "datasets", "accelerate", "pyarrow", "matplotlib")


def loaded_by(code: str) -> set[str]:
    """Which modules of SLOW a clean process has loaded after running the code."""
    report = f"import sys, json; print(json.dumps([m for m in {SLOW!r} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_and_its_rooms_are_there():
    assert loaded_by("import spanbert_fast") == set()
    code = (
        "import spanbert_fast as sb; assert {'ops', 'models'} <= {*dir(sb)}\n"
        "sb.ops.bias_gelu.bias_gelu, sb.nn.TransformerLayer, sb.data.batches, sb.tasks.NAMES\n"
        "try: sb.modls\nexcept AttributeError as error: assert 'modls' in str(error)\n"
        "else: raise AssertionError"
    )
    assert "transformers" not in loaded_by(code)


HELPS = [["--help"], *([name, "--help"] for name in COMMANDS)]
HELPS += [["finetune", name, "--help"] for name in NAMES]


def test_a_help_loads_neither_torch_nor_transformers():
    code = "from spanbert_fast.cli import main\n" + "\n".join(
        f"assert main({help!r}) == 0" for help in HELPS
    )
    assert loaded_by(code) == set()


def test_a_missing_extra_is_named_in_one_line(tmp_path):
    code = (
        "import sys, importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'datasets' else find(name, *a)\n"
        "from spanbert_fast.cli import main\n"
        f"sys.exit(main(['prepare', '--output-dir', {str(tmp_path / 'shards')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "spanbert-fast prepare: error: prepare needs datasets: pip install 'spanbert-fast[train]'"
    ]


TYPED = """
import spanbert_fast as sb
reveal_type(sb.SpanBertForPreTraining)
reveal_type(sb.use_backend)
reveal_type(sb.ops.OPS)
reveal_type(sb.models.SpanBertModel)
sb.SpanBertForPretraining
sb.ops.varlen_atention
"""


def test_a_type_checker_sees_the_names_and_no_others(tmp_path):
    (tmp_path / "use.py").write_text(TYPED)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = silent\nignore_missing_imports = true\n"
        # reading the libraries' types would take minutes
        "[mypy-torch.*,transformers.*,numpy.*,huggingface_hub.*,safetensors.*,tokenizers.*]\n"
        "follow_imports = skip\nfollow_imports_for_stubs = true\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "use.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "MYPYPATH": str(ROOT)},
    )
    lines = done.stdout.splitlines()
    for number, kind in ((3, "pretraining.SpanBertForPreTraining"), (6, "encoder.SpanBertModel")):
        note = next(line for line in lines if line.startswith(f"use.py:{number}: note"))
        assert f"-> spanbert_fast.models.{kind}" in note, note
    assert any(line.startswith("use.py:4: note") and "name: " in line for line in lines), lines
    assert any(line.startswith("use.py:5: note") and "tuple[" in line.lower() for line in lines)
    errors = [line for line in lines if ": error: " in line]
    assert len(errors) == 2, done.stdout
    assert errors[0].startswith("use.py:7:") and 'attribute "SpanBertForPretraining"' in errors[0]
    assert errors[1].startswith("use.py:8:") and 'attribute "varlen_atention"' in errors[1]
