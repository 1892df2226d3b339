"""The precision in which a run computes, and the dtype in which it keeps its weights."""

import dataclasses
import logging
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from spanbert_fast.errors import UsageError
from spanbert_fast.models.loading import stored_dtype
from spanbert_fast.ops._precision import product_dtype
from spanbert_fast.training.options import RunOptions

logger = logging.getLogger("spanbert_fast")
Options = TypeVar("Options", bound=RunOptions)
Model = TypeVar("Model", bound=nn.Module)


def with_precision(options: Options) -> Options:
    """A run's options with "auto" resolved; with weights in bf16 the precision is bf16.

    Raises:
        UsageError: as `resolved_precision`.
    """
    on_gpu = torch.cuda.is_available() and not options.training_arguments.get("use_cpu")
    if options.weights_dtype == "bf16":
        logger.warning(
            "--weights-dtype bf16: half the memory, but an update below 1/512 of its weight is lost"
        )
        return dataclasses.replace(options, precision="bf16")
    device = torch.device("cuda" if on_gpu else "cpu")
    return dataclasses.replace(options, precision=resolved_precision(options.precision, device))


def with_weights_in(weights_dtype: str, model: Model) -> Model:
    """Convert the model's weights, in place, to "fp32" or "bf16"; returns the model.

    It logs when a checkpoint in half precision is trained in fp32, as half would lose small steps.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[weights_dtype]
    before = next(p.dtype for p in model.parameters() if p.is_floating_point())
    folder = getattr(model, "name_or_path", "")
    if before == torch.float32 and folder:
        before = stored_dtype(Path(folder)) or before
    if dtype == torch.float32 and before != dtype and before.itemsize == 2:
        logger.info(
            "the weights come in %s and are trained in fp32 (--weights-dtype bf16: in bf16)",
            str(before).removeprefix("torch."),
        )
    return model.to(dtype)


def fastest_precision(device: torch.device) -> str:
    """ "bf16" if the device has units for bf16 products, else "fp32".

    The answer depends on the kind of device, not on a measurement: equal runs stay equal.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = device.type == "cpu" and product_dtype(torch.bfloat16, device) == torch.bfloat16
    return "bf16" if fast else "fp32"


def resolved_precision(precision: str, device: torch.device) -> str:
    """`precision`, with "auto" replaced by the fastest; logs if another would be faster.

    Raises:
        UsageError: fp16 on a CPU, where the Trainer would silently compute in fp32.
    """
    fastest = fastest_precision(device)
    if precision == "auto":
        logger.info("precision %s: the fastest on this %s", fastest, device.type)
        return fastest
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("--precision must be auto, fp32 or bf16 on a CPU, got fp16")
    if precision == "bf16" and fastest == "fp32":
        logger.warning(
            "--precision bf16: this %s has no units for bf16 products and makes them in fp32; "
            "--precision fp32 is faster",
            device.type,
        )
    if precision == "fp32" and fastest == "bf16" and device.type == "cpu":
        logger.info("precision fp32: bf16 would be faster on this CPU")
    return precision
