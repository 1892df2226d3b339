"""Every public function, module and model has a short example in its docstring, and it runs."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import spanbert_fast
from spanbert_fast import nn
from spanbert_fast.ops import OPS

MOST_LINES = 6  # of an example's code


def on_the_site() -> list[str]:
    """The names on docs/api.md, without the package's."""
    page = (Path(__file__).parent.parent / "docs/api.md").read_text()
    return re.findall(r"auto(?:function|class):: spanbert_fast\.(\S+)", page)


def public() -> dict[str, object]:
    """Public callables by their names: those of the package, and those of the page API."""
    found = {
        f"spanbert_fast.{name}": getattr(spanbert_fast, name) for name in spanbert_fast.__all__
    }
    found |= {f"nn.{name}": getattr(nn, name) for name in nn.__all__}
    for op in OPS:
        module = importlib.import_module(f"spanbert_fast.ops.{op}")
        functions = inspect.getmembers(module, inspect.isfunction)
        found |= {
            f"ops.{op}.{name}": function
            for name, function in functions
            if function.__module__ == module.__name__ and not name.startswith("_")
        }
    for place in (*on_the_site(), "testing.assert_no_worse_than", "testing.assert_bitwise_equal"):
        module, _, name = f"spanbert_fast.{place}".rpartition(".")
        found[place] = getattr(importlib.import_module(module), name)
    return {name: value for name, value in found.items() if callable(value)}


HELPERS = {"ops.sample_spans.span_capacity", "tasks.base.Task"}
# These need a file of another program, a GPU, or a stock model. README and the site show their use,
# and tests run that code.
SHOWN_ELSEWHERE = {
    "integrations.import_fairseq.import_fairseq",
    "training.CapturedStep",
    "accelerate",
    "decelerate",
    "spanbert_fast.accelerate",
    "spanbert_fast.decelerate",
}


def is_value(kind: object) -> bool:
    return isinstance(kind, type) and (
        hasattr(kind, "_fields") or (dataclasses.is_dataclass(kind) and not hasattr(kind, "of"))
    )


NEED_ONE = sorted(
    name
    for name, value in public().items()
    if not is_value(value) and name not in HELPERS | SHOWN_ELSEWHERE
)


@pytest.mark.parametrize("name", NEED_ONE)
def test_it_has_a_short_example(name):
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(public()[name]) or "")
    assert examples, f"{name} has no example in its docstring"
    assert sum(len(example.source.splitlines()) for example in examples) <= MOST_LINES


def modules() -> list[str]:
    """Names of all modules with examples; the compiled module has none."""
    found = pkgutil.walk_packages(spanbert_fast.__path__, "spanbert_fast.")
    names = ["spanbert_fast", *(m.name for m in found if ".kernels" not in m.name)]
    return [name for name in names if _has_examples(name)]


def _has_examples(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    path = spec and spec.origin
    if not path or not path.endswith(".py"):
        return False
    with open(path, encoding="utf-8") as file:
        return re.search(r"^ +>>> ", file.read(), flags=re.MULTILINE) is not None


@pytest.mark.parametrize("name", modules())
def test_its_examples_run(name, trained_model, tmp_path, monkeypatch):
    """Examples may use torch, and a checkpoint in runs/first/model."""
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/model").symlink_to(trained_model)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    torch.manual_seed(0)
    failed, tried = doctest.testmod(
        module, extraglobs={"torch": torch}, optionflags=doctest.ELLIPSIS
    )
    assert tried and not failed
