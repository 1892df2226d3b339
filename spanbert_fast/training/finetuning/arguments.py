"""The Trainer's arguments of a fine-tuning run."""

from transformers import TrainingArguments

from spanbert_fast.errors import UsageError
from spanbert_fast.training.arguments import trainer_arguments
from spanbert_fast.training.finetuning.options import FinetuneOptions


def training_arguments(options: FinetuneOptions) -> TrainingArguments:
    """The Trainer's arguments; joins the process group under torchrun.

    Raises:
        UsageError: a field of `options.training_arguments` is unknown or not valid.
    """
    batch_size = options.value("batch_size")
    assert batch_size is not None
    own = {
        "num_train_epochs": options.value("epochs"),
        "per_device_train_batch_size": int(batch_size),
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "learning_rate": options.value("learning_rate"),
        # a value below 1 is a share of the steps
        "warmup_steps": options.warmup_ratio if options.warmup_ratio < 1 else 0.999999,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,  # the last checkpoint and the best one
        "load_best_model_at_end": True,
        "metric_for_best_model": options.make_task().metric,
        "greater_is_better": True,
        "logging_steps": 0.02,  # a share of the steps
        # a resumed run keeps its count of epochs without a gain
        "restore_callback_states_from_checkpoint": True,
    }
    arguments = trainer_arguments("finetune", options, own)
    # processes predict different numbers of batches, and FSDP would wait for equal ones
    if arguments.fsdp:
        raise UsageError("--set fsdp: fine-tuning takes no FSDP; under torchrun it uses DDP")
    return arguments
