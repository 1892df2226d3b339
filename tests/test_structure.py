"""Rules of the layout that a test can check: imports, the name `kernels`, file names."""

import ast
import importlib.util
from pathlib import Path

import pytest

import spanbert_fast
from spanbert_fast.ops import OPS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "spanbert_fast"

ALWAYS = {"_lazy", "errors", "extras", "meter", "schema", "values"}
# package -> the packages that it may import, beside itself and ALWAYS
MAY_IMPORT = {
    "reference": set(),
    "kernels": set(),
    "ops": {"kernels", "_extension", "reference"},
    "nn": {"ops"},
    "optim": {"ops"},
    "accelerated": {"nn", "ops"},
    "models": {"accelerated", "nn", "ops", "config", "digests"},
    "data": {"ops"},
    "tasks": {"models", "data"},
    "hub": set(),
    "training": {
        "hub",
        "models",
        "data",
        "tasks",
        "config",
        "digests",
        "fill_span",
        "ops",
        "optim",
    },
    "integrations": {"accelerated", "models", "nn", "ops", "data", "config"},
    "fill_span": {"models"},
    "pipelines": {"accelerated", "models", "tasks"},
    "config": set(),
    "digests": set(),
    "_lazy": set(),
    "errors": set(),
    "extras": set(),
    "meter": set(),
    "values": set(),
    "schema": set(),
    "testing": set(),
    "_extension": {"_C"},
}


def room_of(path: Path) -> str:
    if path.is_relative_to(ROOT / "kernels"):
        return "kernels"
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            assert parts[0] not in ("tests", "benchmarks", "kernels"), f"{path} imports {name}"
            if parts[0] == "spanbert_fast" and len(parts) > 1:
                rooms.add(parts[1])
    return rooms


SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "kernels").glob("*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_floor_plan(path):
    room = room_of(path)
    if room not in MAY_IMPORT:  # the package itself and the command line may import everything
        assert room in ("__init__", "__main__", "cli", "commands"), f"a room without a rule: {room}"
        return
    extra = imported_rooms(path) - MAY_IMPORT[room] - {room, *ALWAYS}
    assert not extra, f"{path.relative_to(ROOT)} may not import {sorted(extra)}"


TRAINING = sorted({*(PACKAGE / "training").rglob("*.py")} - {PACKAGE / "training" / "__init__.py"})


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_pre_training_and_fine_tuning_do_not_import_each_other(path):
    """Neither half imports the other, and the shared files import neither half."""
    halves = {"pretraining", "finetuning"} - {path.parent.name}
    text = path.read_text()
    for half in halves:
        assert f"spanbert_fast.training.{half}" not in text, f"{path.name} imports {half}"


def test_every_op_has_its_reference_and_its_tests():
    ops, files = set(OPS), {path.stem for path in (PACKAGE / "ops").glob("[!_]*.py")}
    references = {path.stem for path in (PACKAGE / "reference").glob("[!_]*.py")}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    values = {"__init__", "dropout", "span_options"}  # values that ops take
    assert files - values == ops - values, files ^ ops
    assert ops - references == {"linear"}, "of which torch.nn.functional.linear is the reference"
    assert ops <= tests, ops - tests


def test_the_name_kernels_never_resolves_into_the_repository():
    spec = importlib.util.find_spec("kernels")
    if spec is not None:
        places = [spec.origin, *(spec.submodule_search_locations or [])]
        assert not any(place and Path(place).is_relative_to(ROOT) for place in places), places
    assert importlib.util.find_spec("spanbert_fast.kernels") is not None
    source = (ROOT / "kernels" / "__init__.py").read_text()
    assert not any(
        isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(ast.parse(source))
    ), "kernels/__init__.py holds a docstring only"


def test_public_names_are_documented():
    for name in spanbert_fast.__all__:
        value = getattr(spanbert_fast, name)
        assert value is not None
        if callable(value):
            assert (value.__doc__ or "").strip(), f"{name} has no docstring"
