"""The Trainer's arguments of a pre-training run."""

from transformers import TrainingArguments

from spanbert_fast.errors import UsageError
from spanbert_fast.training.arguments import trainer_arguments
from spanbert_fast.training.pretraining.options import PretrainOptions


def training_arguments(options: PretrainOptions) -> TrainingArguments:
    """The Trainer's arguments; joins the process group under torchrun.

    Raises:
        UsageError: a field of `options.training_arguments` is unknown or not valid.
    """
    recipe = options.recipe
    own = {
        "max_steps": recipe.max_steps,
        "warmup_steps": recipe.warmup_steps,
        "learning_rate": recipe.learning_rate,
        "adam_beta1": recipe.adam_beta1,
        "adam_beta2": recipe.adam_beta2,
        "adam_epsilon": recipe.adam_epsilon,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "logging_steps": options.steps_between("logging_steps"),
        "save_steps": options.steps_between("save_steps"),
        "save_total_limit": options.save_total_limit,
        "eval_strategy": "steps" if options.eval_steps else "no",
        "eval_steps": options.eval_steps or None,
        "dataloader_num_workers": options.num_workers,
    }
    return trainer_arguments("pretrain", options, own)


def check_device(arguments: TrainingArguments) -> None:
    if arguments.world_size > 1:
        raise UsageError(f"--cuda-graph needs a single process, got {arguments.world_size}")
    if arguments.device.type != "cuda":
        raise UsageError(f"--cuda-graph needs a CUDA device, got {arguments.device.type}")
