#!/usr/bin/env python
"""The encoder without gradients beside Hugging Face's, in bf16.

The providers run one batch in turn in one process; a speed-up is the median over the pairs. Before
it is printed, both outputs are checked against Hugging Face's eager model in fp32: ours may be at
most twice as far from it as theirs. Weights are bf16 in both, so that nothing is cast.

If onnxruntime is installed, it runs the same encoder in fp32 on the CPU, where it has no bf16.
`--compiled` also measures the compiled model; compiling takes a minute.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import torch
from op_case import installed
from results_format import RESULTS, document, write_document
from timing import Clock, interleaved, ratio, summary
from training_providers import lengths_of
from transformers import BertConfig, BertModel

from spanbert_fast.models import SpanBertConfig, SpanBertModel

OURS, SDPA, EAGER, ONNX = "ours", "hf-sdpa", "hf-eager", "onnxruntime fp32"
COMPILED = "hf-sdpa-compiled"
_STD = 0.06  # scores of 768 features have a standard deviation of 3, as in a trained model


class SynchronousClock(Clock):
    """Wall-clock seconds of a call, including the GPU's work that it starts."""

    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        return super().seconds(lambda: (call(), torch.cuda.synchronize()))


def models(layers: int, hidden_size: int, device: str) -> dict[str, torch.nn.Module]:
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
    found = {OURS: ours}
    for name, attention in ((SDPA, "sdpa"), (EAGER, "eager")):
        config = BertConfig(**sizes, attn_implementation=attention)
        found[name] = BertModel(config, add_pooling_layer=False)
    for model in found.values():
        model.load_state_dict(truth.state_dict())
        model.bfloat16()
    return {name: model.eval().to(device) for name, model in {**found, "truth": truth}.items()}


def batch_of(lengths: tuple[int, ...], device: str) -> dict[str, torch.Tensor]:
    """Padded random text."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.tensor(lengths)
    mask = torch.arange(int(counts.max())) < counts[:, None]
    batch = {"input_ids": torch.randint(5, 28_996, mask.shape, generator=generator) * mask}
    if not mask.all():
        batch["attention_mask"] = mask.long()
    return {name: tensor.to(device) for name, tensor in batch.items()}


def onnx_session(model: torch.nn.Module, batch: dict, threads: int) -> Callable | None:
    """The fp32 model in onnxruntime; None if that is not installed."""
    if not all(installed(name) for name in ("onnxruntime", "onnx", "onnxscript")):
        return None
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        path = str(Path(folder) / "encoder.onnx")
        # of this batch's shapes alone
        torch.onnx.export(
            model, (), path, kwargs=batch, input_names=list(batch), output_names=["hidden"],
            dynamo=True, verbose=False,
        )  # fmt: skip
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        # else its threads would keep spinning while later providers run
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, settings, ["CPUExecutionProvider"])
    inputs = {name: tensor.numpy() for name, tensor in batch.items()}
    return lambda: torch.from_numpy(session.run(["hidden"], inputs)[0])


@torch.inference_mode()
def measure(
    layers: int, hidden_size: int, lengths: tuple[int, ...], options, budget: float
) -> dict[str, Any]:
    """One case: errors, medians, and the speed-ups that may be printed."""
    kinds, batch = models(layers, hidden_size, options.device), batch_of(lengths, options.device)
    left_out = {}
    if options.compiled:
        torch.compiler.reset()
        kinds[COMPILED] = torch.compile(kinds[SDPA], dynamic=False)
    else:
        left_out[COMPILED] = "it takes a minute to compile (--compiled)"
    runs: dict[str, Callable[[], torch.Tensor]] = {
        name: lambda model=model: model(**batch).last_hidden_state
        for name, model in kinds.items()
        if name != "truth"
    }
    if options.device == "cpu":
        session = onnx_session(kinds["truth"], batch, options.threads)
        runs |= {ONNX: session} if session else {}
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    truth = kinds["truth"](**batch).last_hidden_state[real]
    errors = {
        name: (run()[real].float() - truth).square().mean().sqrt().item()
        for name, run in runs.items()
    }
    passed = errors[OURS] <= 2 * errors[SDPA]
    clock = SynchronousClock() if options.device == "cuda" else Clock()
    seconds = interleaved(runs, clock, budget, min(3, options.rounds), options.rounds)
    return {
        "layers": layers,
        "hidden_size": hidden_size,
        "lengths": list(lengths),
        "dtype": "bf16",
        "device": options.device,
        "passed": passed,
        "not_installed": [ONNX] if options.device == "cpu" and ONNX not in runs else [],
        "not_measured": left_out,
        "providers": {
            name: summary(times) | {"error": errors[name]} for name, times in seconds.items()
        },
        "speedups": {
            name: ratio(times, seconds[OURS])
            for name, times in seconds.items()
            if name != OURS and passed and errors[name] <= 2 * errors[SDPA]
        },
    }


def late(layers: int, hidden_size: int, lengths: tuple[int, ...]) -> dict[str, Any]:
    """The result of a case for which no time was left."""
    return {
        "layers": layers,
        "hidden_size": hidden_size,
        "lengths": list(lengths),
        "passed": False,
        "not_installed": [],
        "not_measured": dict.fromkeys((OURS, SDPA, EAGER), "the time was up"),
        "providers": {},
        "speedups": {},
    }


def show(result: dict) -> str:
    """A result for reading."""
    lengths = result["lengths"]
    kind = "full" if len(set(lengths)) == 1 else f"ragged, mean {sum(lengths) / len(lengths):.0f}"
    wrong = "" if result["passed"] or not result["providers"] else "  WRONG"
    lines = [
        f"{result['layers']} x {result['hidden_size']}, batch {len(lengths)}, "
        f"longest {max(lengths)}, {kind}{wrong}"
    ]
    for name, found in result["providers"].items():
        ratio = result["speedups"].get(name)
        text = "" if ratio is None else "{median:.2f} x ({low:.2f} to {high:.2f})".format(**ratio)
        lines.append(f"  {name:<18}{found['median_ms']:>10.1f} ms  {text}")
    lines += [f"  {name:<18}{'not installed':>13}" for name in result["not_installed"]]
    lines += [f"  {name:<18} not measured: {why}" for name, why in result["not_measured"].items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure every case; 1 if one is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--layers", type=int, nargs="+", default=[12, 4], help="of 768; 12 is BERT base (12 4)")
    add("--batches", type=int, nargs="+", default=[1, 32])
    add("--seqlen", type=int, default=128)
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=15, help="calls of each provider at most (15)")
    add("--budget", type=float, default=90, help="seconds for all cases (90)")
    add("--compiled", action="store_true", help="torch.compile's form of Hugging Face's, too")
    add("--tiny", action="store_true", help="1 layer of 64, 2 sequences of 16")
    add("--output", type=Path, default=RESULTS / "inference.json")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    from spanbert_fast.data.embedded import embedded_documents

    if options.tiny:
        options.layers, options.batches, options.seqlen, options.rounds = [1], [2], 16, 3
    documents, cases = embedded_documents(), []
    for layers in options.layers:
        for size in options.batches:
            full = (options.seqlen,) * size
            kinds = {full, lengths_of(documents, size, options.seqlen)}
            cases += [(layers, lengths) for lengths in sorted(kinds, reverse=True)]
    hidden_size, results = 64 if options.tiny else 768, []
    end = time.perf_counter() + options.budget
    for number, (layers, lengths) in enumerate(cases):
        left = end - time.perf_counter()
        if left > 0:
            budget = left / (len(cases) - number) / 2  # the other half checks
            results.append(measure(layers, hidden_size, lengths, options, budget))
        else:
            results.append(late(layers, hidden_size, lengths))
        print(show(results[-1]), flush=True)
    write_document(options.output, document("inference", options.threads, results, options.device))
    return 0 if all(result["passed"] for result in results if result["providers"]) else 1


if __name__ == "__main__":
    sys.exit(main())
