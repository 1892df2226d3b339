"""Checkpoints for others: an ordinary BERT or another encoder of its family, half precision, ONNX;
each checked in a process that has never loaded this package."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from spanbert_fast import models
from spanbert_fast.accelerated.accelerate import accelerate, decelerate
from spanbert_fast.accelerated.families import FAMILIES
from spanbert_fast.accelerated.registry import fast_class
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.extras import require
from spanbert_fast.models.base import SpanBertPreTrainedModel
from spanbert_fast.schema import read_json

KINDS = ("as-loaded", "bert", "safetensors-fp16", "safetensors-bf16", "onnx")
_DTYPES = {"safetensors-fp16": torch.float16, "safetensors-bf16": torch.bfloat16}
# relative to the largest output: another order of sums in fp32, a few roundings in half precision
_FULL, _FP16, _BF16 = 1e-4, 2e-2, 1e-1
_TOLERANCES = dict(zip(KINDS, (_FULL, _FULL, _FP16, _BF16, _FULL), strict=True))
_OUTPUTS = ("logits", "prediction_logits", "start_logits", "last_hidden_state")
_COPIED = ("*token*.json", "vocab.*", "merges.txt", "*.model", "task.json", "README.md")

# The code of the other process, which does not import this package.
_WITH_TRANSFORMERS = """
import sys, numpy, torch, transformers
folder, kind, ids, out = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(folder).eval()
with torch.no_grad():
    found = model(torch.from_numpy(numpy.load(ids)))
numpy.save(out, (found[next(n for n in %r if n in found)]).float().numpy())
"""
_WITH_ONNXRUNTIME = """
import sys, numpy, onnxruntime
folder, kind, ids, out = sys.argv[1:]
session = onnxruntime.InferenceSession(folder + "/model.onnx")
ids = numpy.load(ids)
inputs = {"input_ids": ids, "attention_mask": numpy.ones_like(ids)}
numpy.save(out, session.run(None, inputs)[0])
"""


class Exported(NamedTuple):
    """The result of `export`.

    Attributes:
        folder: where the checkpoint is.
        kind: the transformers class that loads it.
        error: largest difference of an output in the other process, relative to the largest output.
    """

    folder: Path
    kind: str
    error: float


def export(directory: str | Path, output: str | Path, to: str) -> Exported:
    """Write a checkpoint for other software, then load it in another process and compare.

    Args:
        directory: a checkpoint of this package, of any version, of a BERT, or of another family
            that `accelerate` knows.
        output: a folder that does not exist yet or is empty.
        to: one of KINDS. "as-loaded" is its own family; a SpanBERT is written as a BERT.

    Raises:
        UsageError: `to` or `output` is not valid.
        MissingExtra: ONNX's libraries are not installed.
        DataError: the checkpoint is not valid, or the one written gives other numbers.
    """
    directory, output = Path(directory), Path(output)
    if to not in KINDS:
        raise UsageError(f"--to must be one of {', '.join(KINDS)}, got {to}")
    if to == "onnx":
        require("--to onnx", "onnx", ("onnx", "onnxruntime", "onnxscript"))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"OUT {output} is there already and not empty")
    kind = read_json(directory / "config.json").get("model_type", "bert")
    is_bert = kind in ("bert", SpanBertConfig.model_type)
    if to == "bert" and not is_bert:
        raise UsageError(f"{directory} is no BERT but of the type {kind}: --to as-loaded writes it")
    model = _our_model(directory) if is_bert else _of_a_family(directory)
    draw = torch.Generator().manual_seed(0)
    shape = (2, min(24, _longest(model)))
    ids = torch.randint(1, model.config.vocab_size, shape, generator=draw)
    ids[ids == model.config.pad_token_id] = model.config.vocab_size - 1
    with torch.no_grad():
        found = model(ids)
    expected = found[next(name for name in _OUTPUTS if name in found)].float().numpy()
    output.mkdir(parents=True, exist_ok=True)
    for pattern in _COPIED:
        for path in directory.glob(pattern):
            shutil.copyfile(path, output / path.name)
    if to == "onnx":
        kind = _write_onnx(model, output)
    else:
        apart = {"span_boundary_apart": True} if is_bert else {}
        for_all: Any = model  # mypy takes the dtype for `self`: transformers wraps `to`
        for_all.to(_DTYPES.get(to, torch.float32)).save_pretrained(output, **apart)
        (kind,) = json.loads((output / "config.json").read_text())["architectures"]
    script = _WITH_ONNXRUNTIME if to == "onnx" else _WITH_TRANSFORMERS % (_OUTPUTS,)
    got = _elsewhere(script, output, kind, ids)
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    if not error <= _TOLERANCES[to]:
        raise DataError(
            f"{output}: {kind} gives outputs that differ by {error:.3g} of the largest, more than "
            f"{_TOLERANCES[to]:g}"
        )
    return Exported(output, kind, error)


def _our_model(directory: Path) -> PreTrainedModel:
    """The checkpoint as a model of this package, in fp32."""
    config = SpanBertConfig.from_pretrained(directory)
    (stored, *_) = config.architectures or ["BertForMaskedLM"]
    name = stored if stored.startswith("Span") else f"Span{stored}"
    if name == "SpanBertForMaskedLM":
        name = "SpanBertForPreTraining"  # it may have the span boundary head, too
    kind = getattr(models, name, None)
    if kind is None:
        raise UsageError(f"{directory}: {stored} is no kind of model that can be exported")
    model, info = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    lacking = {name for name in info["missing_keys"] if "pooler" not in name}
    if name == "SpanBertForPreTraining" and all("span_boundary" in n for n in lacking) and lacking:
        masked = models.SpanBertForMaskedLM
        model, info = masked.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True
        )
        lacking = info["missing_keys"]
    if lacking:
        raise UsageError(f"{directory} lacks {min(lacking)}")
    return model.eval()


def _of_a_family(directory: Path) -> PreTrainedModel:
    """The checkpoint in its own class of transformers, accelerated, in fp32."""
    config = transformers.AutoConfig.from_pretrained(directory)
    (stored, *_) = config.architectures or [config.model_type]
    kind = getattr(transformers, stored, None)
    if kind is None or fast_class(kind) is None:
        known = ", ".join(family.title for family in FAMILIES)
        raise UsageError(f"{directory}: must be a model of {known}, got {stored}")
    model, info = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    lacking = {name for name in info["missing_keys"] if "pooler" not in name}
    if lacking:
        raise UsageError(f"{directory} lacks {min(lacking)}")
    accelerate(model.eval())
    return model


def _longest(model: PreTrainedModel) -> int:
    """The most tokens of a sequence: RoBERTa's positions begin behind the padding's."""
    most = model.config.max_position_embeddings
    from_padding = getattr(model.base_model.get_submodule("embeddings"), "padding_idx", None)
    return most if from_padding is None else most - from_padding - 1


def _stock(model: PreTrainedModel) -> PreTrainedModel:
    """A transformers model with the same weights and attention in plain operators."""
    if not isinstance(model, SpanBertPreTrainedModel):
        decelerate(model)
        model.set_attn_implementation("eager")
        return model
    name = type(model).__name__.removeprefix("Span").replace("ForPreTraining", "ForMaskedLM")
    fields = {**model.config.to_dict(), "model_type": "bert"}
    config = transformers.BertConfig.from_dict(fields, attn_implementation="eager")
    stock = getattr(transformers, name)(config)
    state = {key: t for key, t in model.state_dict().items() if "span_boundary" not in key}
    stock.load_state_dict(state)
    return stock.eval()


def _write_onnx(model: PreTrainedModel, output: Path) -> str:
    stock = _stock(model)
    longest = _longest(stock)
    ids = torch.ones((2, min(16, longest)), dtype=torch.int64)
    shapes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=longest)}
    torch.onnx.export(
        stock,
        (),
        str(output / "model.onnx"),
        # two tensors: one given twice becomes one input of the graph
        kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        input_names=["input_ids", "attention_mask"],
        dynamic_shapes={"input_ids": shapes, "attention_mask": shapes},
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    stock.config.architectures = [type(stock).__name__]
    stock.config.save_pretrained(output)
    return type(stock).__name__


def _elsewhere(script: str, folder: Path, kind: str, ids: torch.Tensor) -> np.ndarray:
    """The first output, computed in another process."""
    with tempfile.TemporaryDirectory() as scratch:
        given, made = Path(scratch, "ids.npy"), Path(scratch, "out.npy")
        np.save(given, ids.numpy())
        arguments = [str(folder), kind, str(given), str(made)]
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DataError(f"{folder}: another process cannot load it: {last}")
        if "LOAD REPORT" in done.stdout + done.stderr and not kind.endswith("Model"):
            raise DataError(f"{folder}: {kind} misses tensors, or has no place for some")
        return np.load(made)
