"""`--max-minutes`: finds how many steps this machine makes in that time, and fits the schedule."""

import copy
import dataclasses
import logging
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, send_to_device
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from spanbert_fast.data.batches import TokenBudgetBatches
from spanbert_fast.data.blocks import BlockDataset
from spanbert_fast.data.collator import DataCollatorForSpanMasking
from spanbert_fast.models.span_objectives import SpanObjectives
from spanbert_fast.training.pretraining.options import PretrainOptions
from spanbert_fast.training.pretraining.recipes import Recipe
from spanbert_fast.training.run_files import OPTIONS, write_json

logger = logging.getLogger("spanbert_fast")

WARM, TIMED = 2, 6  # numbers of steps


def seconds_per_step(
    model: SpanObjectives,
    blocks: BlockDataset,
    collator: DataCollatorForSpanMasking,
    options: PretrainOptions,
    device: torch.device,
) -> float:
    """Seconds of an optimiser step, measured on a copy of the model."""
    recipe = options.recipe
    model = copy.deepcopy(model)
    model.to(device).train()  # type: ignore[arg-type]  # a decorator of transformers hides self
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    batches = TokenBudgetBatches(
        blocks.lengths,
        tokens_per_batch=recipe.tokens_per_batch,
        num_batches=WARM + TIMED,
        seed=options.seed,
    )
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")
    began = 0.0
    for number, batch in enumerate(DataLoader(blocks, batch_sampler=batches, collate_fn=collator)):
        if number == WARM:
            _wait(device)
            began = time.perf_counter()
        with autocast:
            loss = model(**send_to_device(batch, device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    _wait(device)
    return (time.perf_counter() - began) / TIMED * recipe.gradient_accumulation_steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fitted(options: PretrainOptions, step: float) -> PretrainOptions:
    """The options with as many steps as fit into `max_minutes`, at most the recipe's. The share of
    warm-up steps stays the recipe's.

    Args:
        step: seconds of an optimiser step on this machine.
    """
    recipe: Recipe = options.recipe
    assert options.max_minutes is not None
    steps = int(options.max_minutes * 60 / step)
    steps = max(1, min(steps, recipe.max_steps))
    logger.info(
        "%.2f s a step on this machine: %d of the recipe's %d steps fit into %g minutes",
        step,
        steps,
        recipe.max_steps,
        options.max_minutes,
    )
    warmup = recipe.warmup_steps * steps // recipe.max_steps
    overrides = {**options.overrides, "max_steps": steps, "warmup_steps": warmup}
    return dataclasses.replace(options, overrides=overrides, max_minutes=None)


def fitted_run(
    options: PretrainOptions,
    model: SpanObjectives,
    tokenizer: PreTrainedTokenizerBase,
    blocks: BlockDataset,
    state: PartialState,
) -> PretrainOptions:
    """The options with the number of steps that the first process has measured. They are written to
    options.json, for a resumed run."""
    found: list[float | None] = [None]
    if state.is_main_process:
        collator = DataCollatorForSpanMasking(
            tokenizer,
            options.recipe.span_options(model.config.max_span_targets),
            seed=options.seed,
            dropout_seeds=True,
        )
        found = [seconds_per_step(model, blocks, collator, options, state.device)]
    options = fitted(options, *broadcast_object_list(found))
    if state.is_main_process:
        path = Path(options.output_dir) / OPTIONS
        write_json(path, options.to_json(state.num_processes))
    return options
