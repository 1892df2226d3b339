"""Runs on the Hugging Face Trainer: `pretraining`, `finetuning`, and here what both share.

The public names are loaded when first used.
"""

from typing import TYPE_CHECKING

from spanbert_fast._lazy import lazy

_PUBLIC = {
    "CapturedStep": "spanbert_fast.training.captured_step",
    "FinetuneOptions": "spanbert_fast.training.finetuning.options",
    "PretrainOptions": "spanbert_fast.training.pretraining.options",
    "Recipe": "spanbert_fast.training.pretraining.recipes",
    "finetune": "spanbert_fast.training.finetuning.finetune",
    "pretrain": "spanbert_fast.training.pretraining.pretrain",
}

__all__ = [*_PUBLIC]

if TYPE_CHECKING:
    from spanbert_fast.training.captured_step import CapturedStep as CapturedStep
    from spanbert_fast.training.finetuning.finetune import finetune as finetune
    from spanbert_fast.training.finetuning.options import FinetuneOptions as FinetuneOptions
    from spanbert_fast.training.pretraining.options import PretrainOptions as PretrainOptions
    from spanbert_fast.training.pretraining.pretrain import pretrain as pretrain
    from spanbert_fast.training.pretraining.recipes import Recipe as Recipe
else:
    __getattr__ = lazy(__name__, (), _PUBLIC)
