"""The arguments that the Trainers of pre-training and of fine-tuning share."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments

from spanbert_fast.errors import UsageError
from spanbert_fast.training.options import RunOptions

logger = logging.getLogger("spanbert_fast")


def trainer_arguments(
    command: str, options: RunOptions, own: Mapping[str, Any]
) -> TrainingArguments:
    """A run's arguments; joins the process group under torchrun.

    Args:
        command: the subcommand, for messages.
        options: of the run; its `training_arguments` win over all others.
        own: fields that this command alone sets.

    Raises:
        UsageError: a field of `options.training_arguments` is unknown or not valid.
    """
    on_gpu = torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    shared = {
        "output_dir": options.output_dir,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "bf16": options.precision == "bf16",
        "fp16": options.precision == "fp16",
        "seed": options.seed,
        "data_seed": options.seed,
        "use_cpu": not on_gpu,
        "ddp_backend": "gloo" if processes > 1 and not on_gpu else None,
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": "none",
        "log_level": "error",
    }
    try:
        arguments = TrainingArguments(**{**shared, **own, **options.training_arguments})
    except (TypeError, ValueError) as error:
        raise UsageError(f"--set: {str(error).splitlines()[0]}") from error
    if arguments.n_gpu > 1:  # DataParallel would cut a packed batch into pieces
        logger.info(
            "one of %d GPUs is used: torchrun --nproc-per-node %d -m spanbert_fast %s ... "
            "uses all of them", arguments.n_gpu, arguments.n_gpu, command,
        )  # fmt: skip
        arguments._n_gpu = 1
    return arguments
