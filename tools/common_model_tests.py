"""transformers' common model tests on every family that `accelerate` knows, stock and accelerated.

    python tools/common_model_tests.py
    python tools/common_model_tests.py --families roberta electra -k "gradient_checkpointing"
    python tools/common_model_tests.py --json common.json    for benchmarks/bench_families.py
    python tools/common_model_tests.py --sources transformers-5.23.0  an unpacked sdist

`tests/test_modeling_common.py` of transformers is not installed with it: without --sources pip
downloads the sdist of the version that is here, and `parameterized`, which the tests need, into
build/common_model_tests. Of each family every encoder class goes through them, as transformers
has it and as `spanbert_fast.accelerated` has it. The exit code is 1 if a test passes on a stock
class alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "common_model_tests"
sys.path.append(str(ROOT / "tests"))

import torch
import transformers
from transformers import PreTrainedModel

from family_cases import BY_NAME, NAMES, config, stock_classes
from spanbert_fast import accelerate
from spanbert_fast.accelerated.registry import fast_class

CASES = """
import sys
sys.path[:0] = {folders!r}
from common_model_tests import case_of
TestCommon = case_of({family!r}, {kind!r})
"""
BATCH, SEQLEN, CHOICES = 5, 7, 4


class Tester:
    """What transformers' tests ask for a configuration and inputs; sizes as in its own tests."""

    is_training = True
    batch_size, seq_length, num_choices = BATCH, SEQLEN, CHOICES
    hidden_size, num_hidden_layers, num_attention_heads = 64, 2, 2

    def __init__(self, family: str):
        self.family = family

    def get_config(self):
        return config(self.family)

    def prepare_config_and_inputs_for_common(self):
        made = self.get_config()
        shape = (self.batch_size, self.seq_length)
        inputs = {"input_ids": torch.randint(2, made.vocab_size, shape)}
        # with padding between tokens, as in transformers' own tests
        inputs["attention_mask"] = torch.randint(0, 2, shape)
        inputs["attention_mask"][:, 0] = 1
        if self.family == "layoutlm":
            low = torch.randint(0, 20, (*shape, 2))
            inputs["bbox"] = torch.cat([low, low + torch.randint(0, 20, low.shape)], dim=-1)
        return made, inputs


def accelerated_class(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The accelerated class; of a head that stays transformers' own (ELECTRA's discriminator), one
    whose encoder is accelerated."""

    def __init__(self, *arguments, **options):  # noqa: N807
        kind.__init__(self, *arguments, **options)
        accelerate(self.base_model)

    return fast_class(kind) or type(kind.__name__, (kind,), {"__init__": __init__})


def case_of(family: str, kind: str) -> type[unittest.TestCase]:
    """transformers' tests over the classes of a family; runs inside pytest, see `outcomes`."""
    # what the sdist leaves out of them, and encoders do not need
    for module, name in {
        "tests.exporters.test_export": "ExportTesterMixin",
        "tests.generation.test_utils": "GenerationTesterMixin",
    }.items():
        if name not in vars(sys.modules.setdefault(module, types.ModuleType(module))):
            setattr(sys.modules[module], name, type(name, (), {}))
    from tests.test_modeling_common import ModelTesterMixin

    classes = stock_classes(family).values()
    if kind == "accelerated":
        classes = map(accelerated_class, classes)

    def setUp(self):  # noqa: N802
        self.model_tester = Tester(family)

    def _prepare_for_class(self, inputs, model_class, return_labels=False):
        made = super(case, self)._prepare_for_class(inputs, model_class, return_labels)
        if return_labels and model_class.__name__.endswith("ForPreTraining"):
            made["labels"] = torch.zeros(BATCH, SEQLEN, dtype=torch.long)
            if family != "electra":
                made["next_sentence_label"] = torch.zeros(BATCH, dtype=torch.long)
        return made

    case = type(
        "TestCommon",
        (ModelTesterMixin, unittest.TestCase),
        {
            "all_model_classes": tuple(classes),
            "setUp": setUp,
            "_prepare_for_class": _prepare_for_class,
        },
    )
    return case


def sources_of(version: str) -> Path:
    """The unpacked sdist, downloaded at the first call."""
    folder = CACHE / f"transformers-{version}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "-q"]
        subprocess.run(
            [*pip, "download", "--no-deps", "--no-binary=transformers", "-d", str(CACHE),
             f"transformers=={version}"], check=True,
        )  # fmt: skip
        with tarfile.open(CACHE / f"transformers-{version}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    return folder


def parameterized_of() -> Path:
    """A folder with the package `parameterized`."""
    folder = CACHE / "packages"
    if not (folder / "parameterized").exists():
        command = ["install", "-q", "--no-deps", "--target", str(folder), "parameterized"]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    return folder


def outcomes(family: str, kind: str, sources: Path, only: str | None) -> dict[str, str]:
    """Test -> "passed", "skipped" or the message of its failure."""
    folders = [str(sources), str(Path(__file__).parent), str(parameterized_of())]
    with tempfile.TemporaryDirectory() as folder:
        cases, report = Path(folder, "test_common.py"), Path(folder, "report.xml")
        cases.write_text(CASES.format(folders=folders, family=family, kind=kind), "utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases),
                   "-c", os.devnull, "--rootdir", folder, f"--junit-xml={report}"]  # fmt: skip
        command += ["-k", only] if only else []
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if not report.exists() or done.returncode > 1:
            raise SystemExit(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        found = {}
        for case in ElementTree.parse(report).iter("testcase"):
            problem = case.find("failure")
            problem = case.find("error") if problem is None else problem
            if problem is not None:
                found[case.get("name")] = problem.get("message", "").splitlines()[0]
            else:
                skipped = case.find("skipped") is not None
                found[case.get("name")] = "skipped" if skipped else "passed"
        return found


def main() -> None:
    """Run them, print the table, and say what passes on stock classes alone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--sources", type=Path, help="an unpacked sdist of transformers")
    parser.add_argument("-k", help="of the tests a part, as pytest takes it")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    sources = (arguments.sources or sources_of(transformers.__version__)).resolve()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    print(f"{'family':<16}{'classes':>8}{'stock passed':>14}{'accelerated passed':>20}")
    broken, numbers = False, {}
    for family in arguments.families:
        stock, ours = (
            outcomes(family, kind, sources, arguments.k) for kind in ("stock", "accelerated")
        )
        counts = [sum(value == "passed" for value in found.values()) for found in (stock, ours)]
        numbers[family] = dict(zip(("stock", "accelerated"), counts, strict=True))
        classes = len(stock_classes(family))
        title = BY_NAME[family].title
        print(f"{title:<16}{classes:>8}{counts[0]:>14}{counts[1]:>20}", flush=True)
        for test, outcome in ours.items():
            if stock[test] == "passed" and outcome != "passed":
                broken = True
                print(f"    {test}: {outcome}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    sys.exit(broken)


if __name__ == "__main__":
    main()
