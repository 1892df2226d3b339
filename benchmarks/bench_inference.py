#!/usr/bin/env python
"""The encoder without gradients beside Hugging Face's, in bf16.

The providers take one batch in turn in one process; a speed-up is the median over the pairs. Before
it is printed, the outputs of both are checked against Hugging Face's eager model in fp32: ours may
be at most twice as far from it as theirs. Weights are bf16 in both, so that nothing is cast.

onnxruntime, where it is installed, runs the same encoder in fp32 (it has no bf16 on CPUs).
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import torch
from results_format import RESULTS, document, write_document
from training_providers import lengths_of
from transformers import BertConfig, BertModel

from spanbert_fast.models import SpanBertConfig, SpanBertModel

OURS, SDPA, ONNX = "ours", "hf-sdpa", "onnxruntime fp32"
_STD = 0.06  # scores of 768 features have a standard deviation of 3, as in a trained model


def models(layers: int, hidden_size: int) -> dict[str, torch.nn.Module]:
    """Ours and Hugging Face's in bf16, and Hugging Face's eager in fp32, with the same weights."""
    sizes = {
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // 64,
        "intermediate_size": 4 * hidden_size,
    }
    torch.manual_seed(0)
    truth = BertModel(BertConfig(**sizes, attn_implementation="eager"), add_pooling_layer=False)
    with torch.no_grad():
        for name, parameter in truth.named_parameters():
            is_norm_scale = "LayerNorm" in name and name.endswith("weight")
            parameter.normal_(std=_STD).add_(is_norm_scale)
    ours = SpanBertModel(SpanBertConfig(**sizes), add_pooling_layer=False)
    theirs = BertModel(BertConfig(**sizes, attn_implementation="sdpa"), add_pooling_layer=False)
    for model in (ours, theirs):
        model.load_state_dict(truth.state_dict())
    bf16 = {OURS: ours.bfloat16(), SDPA: theirs.bfloat16()}
    return {name: model.eval() for name, model in {**bf16, "truth": truth}.items()}


def batch_of(lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Padded random text."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.tensor(lengths)
    mask = torch.arange(int(counts.max())) < counts[:, None]
    ids = torch.randint(5, 28_996, mask.shape, generator=generator) * mask
    return {"input_ids": ids} if mask.all() else {"input_ids": ids, "attention_mask": mask.long()}


def onnx_session(model: torch.nn.Module, batch: dict, threads: int) -> Callable | None:
    """The fp32 model in onnxruntime; None where it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        return None
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "encoder.onnx")
        torch.onnx.export(
            model, (), path, kwargs=batch, input_names=list(batch), output_names=["hidden"],
            dynamo=False,
        )  # fmt: skip
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, settings, ["CPUExecutionProvider"])
    inputs = {name: tensor.numpy() for name, tensor in batch.items()}
    return lambda: torch.from_numpy(session.run(["hidden"], inputs)[0])


@torch.inference_mode()
def measure(layers: int, hidden_size: int, lengths: tuple[int, ...], options) -> dict:
    """One case: errors, medians, and the speed-ups that may be printed."""
    kinds, batch = models(layers, hidden_size), batch_of(lengths)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        name: lambda model=kinds[name]: model(**batch).last_hidden_state for name in (OURS, SDPA)
    }
    if session := onnx_session(kinds["truth"], batch, options.threads):
        runs[ONNX] = session
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    truth = kinds["truth"](**batch).last_hidden_state[real]
    errors = {
        name: (run()[real].float() - truth).square().mean().sqrt().item()
        for name, run in runs.items()
    }
    passed = errors[OURS] <= 2 * errors[SDPA]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    while len(seconds[OURS]) < options.rounds and (
        len(seconds[OURS]) < 3 or time.perf_counter() - start < options.budget
    ):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    ratios = {
        name: [b / a for a, b in zip(seconds[OURS], times, strict=True)]
        for name, times in seconds.items()
        if name != OURS
    }
    return {
        "layers": layers,
        "hidden_size": hidden_size,
        "lengths": list(lengths),
        "dtype": "bf16",
        "passed": passed,
        "not_installed": [] if ONNX in runs else [ONNX],
        "providers": {
            name: {"median_ms": 1e3 * statistics.median(times), "error": errors[name]}
            for name, times in seconds.items()
        },
        "speedups": {
            name: {"median": statistics.median(r), "low": min(r), "high": max(r)}
            for name, r in ratios.items()
            if passed and errors[name] <= 2 * errors[SDPA]
        },
    }


def show(result: dict) -> str:
    """A result for reading."""
    lengths = result["lengths"]
    kind = "full" if len(set(lengths)) == 1 else f"ragged, mean {sum(lengths) / len(lengths):.0f}"
    lines = [
        f"{result['layers']} x {result['hidden_size']}, batch {len(lengths)}, "
        f"longest {max(lengths)}, {kind}" + ("" if result["passed"] else "  WRONG")
    ]
    for name, found in result["providers"].items():
        ratio = result["speedups"].get(name)
        text = "" if ratio is None else "{median:.2f} x ({low:.2f} to {high:.2f})".format(**ratio)
        lines.append(f"  {name:<18}{found['median_ms']:>10.1f} ms  {text}")
    lines += [f"  {name:<18}{'not installed':>13}" for name in result["not_installed"]]
    return "\n".join(lines)


def main() -> int:
    """Measure every case; 1 where one is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--layers", type=int, nargs="+", default=[12], help="12 is BERT base")
    add("--batches", type=int, nargs="+", default=[1, 32])
    add("--seqlen", type=int, default=128)
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=15, help="calls of each provider (15)")
    add("--budget", type=float, default=20, help="seconds after which 3 are enough (20)")
    add("--tiny", action="store_true", help="1 layer of 64, 2 sequences of 16")
    add("--output", type=Path, default=RESULTS / "inference.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from spanbert_fast.data.embedded import embedded_documents

    if options.tiny:
        options.layers, options.batches, options.seqlen, options.rounds = [1], [2], 16, 3
    documents, results = embedded_documents(), []
    for layers in options.layers:
        for size in options.batches:
            full = (options.seqlen,) * size
            kinds = {full, lengths_of(documents, size, options.seqlen)}
            for lengths in sorted(kinds, reverse=True):
                hidden_size = 64 if options.tiny else 768
                results.append(measure(layers, hidden_size, lengths, options))
                print(show(results[-1]), flush=True)
    write_document(options.output, document("inference", options.threads, results))
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
