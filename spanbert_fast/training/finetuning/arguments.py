"""The Trainer's arguments of a fine-tuning run."""

from transformers import TrainingArguments

from spanbert_fast.errors import UsageError
from spanbert_fast.training.arguments import trainer_arguments
from spanbert_fast.training.finetuning.options import FinetuneOptions


def training_arguments(options: FinetuneOptions) -> TrainingArguments:
    """The Trainer's arguments; joins the process group under torchrun.

    Raises:
        UsageError: a field of `options.training_arguments` is unknown or cannot be.
    """
    batch_size = options.value("batch_size")
    assert batch_size is not None
    own = {
        "num_train_epochs": options.value("epochs"),
        "per_device_train_batch_size": int(batch_size),
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "learning_rate": options.value("learning_rate"),
        # below 1 it is a share of the steps
        "warmup_steps": options.warmup_ratio if options.warmup_ratio < 1 else 0.999999,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,  # the last one and the best
        "load_best_model_at_end": True,
        "metric_for_best_model": options.make_task().metric,
        "greater_is_better": True,
        "logging_steps": 0.02,  # a share of the steps
        "restore_callback_states_from_checkpoint": True,  # patience goes on where it was
    }
    arguments = trainer_arguments("finetune", options, own)
    if arguments.fsdp:  # each process predicts a share of its own, in batches of its own number
        raise UsageError("--set fsdp: fine-tuning takes no FSDP; under torchrun it uses DDP")
    return arguments
