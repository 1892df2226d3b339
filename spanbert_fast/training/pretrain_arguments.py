"""The Trainer's arguments of a pre-training run."""

import logging
import os

import torch
from transformers import TrainingArguments

from spanbert_fast.errors import UsageError
from spanbert_fast.training.options import PretrainOptions

logger = logging.getLogger("spanbert_fast")


def training_arguments(options: PretrainOptions) -> TrainingArguments:
    """The Trainer's arguments; joins the process group under torchrun.

    Raises:
        UsageError: a field of `options.training_arguments` is unknown or cannot be.
    """
    recipe = options.recipe
    on_gpu = torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    fields = {
        "output_dir": options.output_dir,
        "max_steps": recipe.max_steps,
        "warmup_steps": recipe.warmup_steps,
        "lr_scheduler_type": "linear",
        "learning_rate": recipe.learning_rate,
        "adam_beta1": recipe.adam_beta1,
        "adam_beta2": recipe.adam_beta2,
        "adam_epsilon": recipe.adam_epsilon,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": "adamw_torch_fused",
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "bf16": options.precision == "bf16",
        "fp16": options.precision == "fp16",
        "seed": options.seed,
        "data_seed": options.seed,
        "use_cpu": not on_gpu,
        "ddp_backend": "gloo" if processes > 1 and not on_gpu else None,
        "ddp_find_unused_parameters": False,
        "logging_steps": options.steps_between("logging_steps"),
        "logging_nan_inf_filter": False,
        "save_steps": options.steps_between("save_steps"),
        "save_total_limit": options.save_total_limit,
        "eval_strategy": "steps" if options.eval_steps else "no",
        "eval_steps": options.eval_steps or None,
        "dataloader_num_workers": options.num_workers,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": "none",
        "log_level": "error",
    }
    try:
        arguments = TrainingArguments(**{**fields, **options.training_arguments})
    except (TypeError, ValueError) as error:
        raise UsageError(f"--set: {str(error).splitlines()[0]}") from error
    if arguments.n_gpu > 1:  # DataParallel would cut a packed batch into pieces
        logger.info(
            "one of %d GPUs is used: torchrun --nproc-per-node %d -m spanbert_fast pretrain ... "
            "uses all of them", arguments.n_gpu, arguments.n_gpu,
        )  # fmt: skip
        arguments._n_gpu = 1
    return arguments


def check_device(arguments: TrainingArguments) -> None:
    if arguments.world_size > 1:
        raise UsageError(f"--cuda-graph needs a single process, got {arguments.world_size}")
    if arguments.device.type != "cuda":
        raise UsageError(f"--cuda-graph needs a CUDA device, got {arguments.device.type}")
