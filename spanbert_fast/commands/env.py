"""`spanbert-fast env`: the first thing to ask of a user with a problem."""

import argparse
import importlib.metadata
import json
import os
import platform
import sys

from spanbert_fast.errors import DataError

LIBRARIES = ("torch", "triton", "transformers", "accelerate", "datasets", "tokenizers", "numpy")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="spanbert-fast env",
        description="Versions, hardware, and which implementation each op runs and why.",
        epilog="examples:\n  spanbert-fast env --check\n  spanbert-fast env --json > env.json\n"
        "  spanbert-fast env --model path/to/roberta",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--check",
        action="store_true",
        help="run every op forward and backward and compare it with the reference (seconds)",
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="also say what accelerate() would replace in the model of this config.json, and why "
        "not the rest",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def environment() -> dict:
    """The facts that `env` prints, as plain data."""
    import torch

    import spanbert_fast
    from spanbert_fast import _extension
    from spanbert_fast.ops._implementations import implementations

    extension = _extension._C
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpus.append(
                f"{properties.name}, sm_{properties.major}{properties.minor}, "
                f"{properties.total_memory / 2**30:.0f} GiB"
            )
    return {
        "spanbert_fast": spanbert_fast.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cpu": {
            "model": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "isa_level": extension.isa_level() if extension else "unknown (no extension)",
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "extension": dict(extension.build_info()) if extension else None,
        "ops": [entry._asdict() for entry in implementations()],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def run(arguments: argparse.Namespace) -> None:
    """Print it.

    Raises:
        DataError: `--check` found an op that is wrong here.
    """
    found = environment()
    if arguments.check:
        found["checked"] = _check()
    if arguments.model is not None:
        found["accelerate"] = _survey(arguments.model)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    wrong = [row for row in found.get("checked", []) if not row["error"] <= 1]
    if wrong:
        worst = wrong[0]
        raise DataError(
            f"{len(wrong)} of {len(found['checked'])} checks failed; the first is {worst['op']} "
            f"in {worst['dtype']} on {worst['device']}: the {worst['result']} is "
            f"{worst['error']:.3g} times what is allowed"
        )


def _check() -> list[dict]:
    import torch

    from spanbert_fast.commands.check_ops import check_ops

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [row._asdict() for device in devices for row in check_ops(device)]


def _survey(directory: str) -> list[str]:
    """What accelerate() would do to a model, which is made without its weights."""
    import torch
    import transformers

    from spanbert_fast.accelerated.survey import survey

    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
        kind = getattr(transformers, (config.architectures or [""])[0], None)
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(config) if kind is None else kind(config)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{directory}: no model can be made of it ({reason})") from error
    return str(survey(model)).splitlines()


def _print(found: dict) -> None:
    cpu = found["cpu"]
    rows = [
        ("spanbert_fast", found["spanbert_fast"]),
        ("python", found["python"]),
        ("platform", found["platform"]),
        *((name, version or "not installed") for name, version in found["libraries"].items()),
        ("cpu", f"{cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads"),
        ("cpu isa level", f"{cpu['isa_level']} (torch: {cpu['torch_capability']})"),
        ("gpu", "; ".join(found["gpus"]) or "none"),
        ("cuda of torch", found["cuda"] or "none"),
        (
            "extension",
            "built with torch {torch}, compiler {compiler}, {cuda} the CUDA sampler".format(
                **found["extension"] | {"cuda": "with" if found["extension"]["cuda"] else "without"}
            )
            if found["extension"]
            else "not built",
        ),
    ]
    for name, value in rows:
        print(f"{name:<16}{value}")
    print("\nop                      device  runs as     because")
    for op in found["ops"]:
        print(f"{op['op']:<24}{op['device']:<8}{op['name']:<12}{op['reason']}")
    if "accelerate" in found:
        print("\naccelerate(model)")
        for line in found["accelerate"]:
            print(line)
    if "checked" in found:
        print("\nop                      device  dtype     error, of what is allowed")
        for row in found["checked"]:
            verdict = f"{row['error']:.2f}" if row["error"] <= 1 else f"{row['error']:.3g}  WRONG"
            print(f"{row['op']:<24}{row['device']:<8}{row['dtype']:<10}{verdict} ({row['result']})")
