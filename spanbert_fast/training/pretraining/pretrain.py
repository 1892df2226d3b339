"""A pre-training run: trains or resumes a model, measures it, and leaves a checkpoint."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from spanbert_fast.data.blocks import BlockDataset
from spanbert_fast.data.collator import DataCollatorForSpanMasking
from spanbert_fast.data.locks import locked
from spanbert_fast.data.static_shapes import StaticShapes
from spanbert_fast.fill_span import FillSpan
from spanbert_fast.models import AutoModelForSpanPreTraining
from spanbert_fast.models.span_boundary_file import set_apart
from spanbert_fast.models.span_objectives import SpanObjectives
from spanbert_fast.schema import OBJECT, number
from spanbert_fast.training.captured_step import CapturedStep
from spanbert_fast.training.checkpoints import checkpoint_step, checkpoint_to_resume
from spanbert_fast.training.precision import with_precision, with_weights_in
from spanbert_fast.training.pretraining import run_directory
from spanbert_fast.training.pretraining.arguments import check_device, training_arguments
from spanbert_fast.training.pretraining.evaluation import HeldOut, unigram_cross_entropy
from spanbert_fast.training.pretraining.fitted_length import fitted_run
from spanbert_fast.training.pretraining.log import MetricsFile, log_line
from spanbert_fast.training.pretraining.options import PretrainOptions
from spanbert_fast.training.pretraining.report import draw_curves, write_pretraining_card
from spanbert_fast.training.pretraining.sources import (
    check_paths,
    initial_model,
    of_the_tokenizer,
    random_token_pool,
    text_and_tokenizer,
)
from spanbert_fast.training.pretraining.trainer import SpanPretrainingTrainer
from spanbert_fast.training.progress import show_progress
from spanbert_fast.training.result import RunResult
from spanbert_fast.training.run_files import read_object, write_json

logger = logging.getLogger("spanbert_fast")


def pretrain(
    options: PretrainOptions,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    model: SpanObjectives | None = None,
    documents: Dataset | None = None,
) -> RunResult:
    """Start or resume a pre-training run; returns the content of its summary.json.

        >>> from datasets import Dataset
        >>> documents = Dataset.from_dict({"text": ["The river follows the winter."] * 50})
        >>> few = {"max_steps": 2, "tokens_per_batch": 256, "max_seq_length": 32}
        >>> options = PretrainOptions("runs/more", init_from="runs/first/model", overrides=few)
        >>> pretrain(options, documents=documents)["steps"]
        2

    It works in one process, and with one call per process under torchrun and `accelerate launch`.

    Args:
        options: for a resumed run, as `resumed_options` gives them.
        resume: continue from the last undamaged checkpoint, bit for bit on the CPU.
        overwrite: replace a run that the directory holds.
        callbacks: further callbacks of the Trainer.
        model: a model of `AutoModelForSpanPreTraining`, in place of a new one or of
            `options.init_from`; its tokenizer is `options.tokenizer`, and its weights are
            converted to `options.weights_dtype`.
        documents: a `datasets.Dataset` with a column `text` and a document per row, in place of
            `options.data`.

    Raises:
        UsageError: the options cannot be met, or another process writes there.
        DataError: the content of a file is wrong.
        OSError: a checkpoint could not be written; earlier ones stay.
        FloatingPointError: the loss, or a weight, is no longer finite.
    """
    options = with_precision(options)
    check_paths(options, resume=resume)
    arguments = training_arguments(options)
    if options.cuda_graph:
        check_device(arguments)
    state = PartialState()  # training_arguments has joined the other processes
    with locked(options.output_dir) if state.is_main_process else nullcontext():
        given = Given(callbacks, model, documents)
        return _pretrain(options, arguments, state, given, resume=resume, overwrite=overwrite)


class Given(NamedTuple):
    """The arguments of `pretrain` beside the options."""

    callbacks: Sequence[TrainerCallback]
    model: SpanObjectives | None
    documents: Dataset | None


def _pretrain(
    options: PretrainOptions,
    arguments: TrainingArguments,
    state: PartialState,
    given: Given,
    *,
    resume: bool,
    overwrite: bool,
) -> RunResult:
    run = Path(options.output_dir)
    if resume and (done := run_directory.finished(run)) is not None:
        logger.info("the run in %s is finished: nothing is trained", run)
        return RunResult(done, run)
    checkpoint = None
    if resume:
        checkpoint = checkpoint_to_resume(run, state)
    elif state.is_main_process:
        run_directory.start(run, options.to_json(state.num_processes), overwrite=overwrite)
    state.wait_for_everyone()
    if resume and state.is_main_process:
        run_directory.forget_after(run, checkpoint_step(checkpoint) if checkpoint else 0)

    with state.main_process_first():
        shards, tokenizer = text_and_tokenizer(options, run, given.documents)
    options = of_the_tokenizer(options, tokenizer)
    recipe = options.recipe
    blocks = BlockDataset(
        shards,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        max_seq_length=recipe.max_seq_length,
        short_seq_prob=recipe.short_seq_prob,
        seed=options.seed,
    )
    if recipe.warmup_steps >= recipe.max_steps:
        logger.warning(
            "--warmup-steps %d leaves no step of the %d at the full learning rate",
            recipe.warmup_steps,
            recipe.max_steps,
        )
    training_blocks, held_out_blocks = blocks.split(options.held_out, options.seed)
    model = initial_model(options, tokenizer) if given.model is None else given.model
    model = with_weights_in(options.weights_dtype, model)
    if options.max_minutes is not None:
        options = fitted_run(options, model, tokenizer, training_blocks, state)
        arguments, recipe = training_arguments(options), options.recipe
    # the span boundary head may come from a checkpoint and have another number of places
    span_options = recipe.span_options(model.config.max_span_targets)
    counts = [None]
    if state.is_main_process:
        counts = [blocks.unigram_counts() - held_out_blocks.unigram_counts()]
    (counts,) = broadcast_object_list(counts)
    del blocks
    held_out = HeldOut(
        held_out_blocks,
        DataCollatorForSpanMasking(
            tokenizer,
            span_options,
            seed=options.seed + 1,
            random_token_pool=random_token_pool(counts, tokenizer),
        ),
        recipe.tokens_per_batch,
    )
    trainer = make_trainer(options, arguments, model, tokenizer, training_blocks, held_out)
    for callback in given.callbacks:
        trainer.add_callback(callback)
    logger.info(
        "%s parameters, %s blocks (%s tokens) to train on, %s held out",
        f"{sum(p.numel() for p in model.parameters()):,}",
        f"{len(training_blocks):,}",
        f"{int(training_blocks.lengths.sum()):,}",
        f"{len(held_out_blocks):,}",
    )

    if checkpoint is None:
        summary = {
            "held_out_before": _without_prefix(trainer.evaluate(metric_key_prefix="before")),
            "unigram_cross_entropy": unigram_cross_entropy(counts, held_out),
        }
        if state.is_main_process:
            write_json(run / run_directory.SUMMARY, summary)
    else:
        rules = {"held_out_before": OBJECT, "unigram_cross_entropy": number(0, 1e9)}
        summary = read_object(run / run_directory.SUMMARY, rules)

    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    summary["held_out_after"] = _without_prefix(trainer.evaluate(metric_key_prefix="after"))

    def finish(folder: Path) -> None:
        set_apart(folder)
        tokens = sum(line.get("tokens", 0) for line in run_directory.read_metrics(run))
        write_pretraining_card(folder, options, model, summary, tokens)

    trainer.export(run / "model", finish)
    if state.is_main_process:
        _finish(run, summary, options, tokenizer, held_out, trainer.args.device)
    state.wait_for_everyone()
    return RunResult(summary, run)


def make_trainer(
    options: PretrainOptions,
    arguments: TrainingArguments,
    model: SpanObjectives,
    tokenizer,
    training_blocks: BlockDataset,
    held_out: HeldOut,
) -> SpanPretrainingTrainer:
    """The Trainer of a run."""
    run, recipe = Path(options.output_dir), options.recipe
    span_options = held_out.collator.options
    shapes = None
    if options.static_shapes:
        shapes = StaticShapes.of(recipe.tokens_per_batch, recipe.max_seq_length, span_options)
    collator = DataCollatorForSpanMasking(
        tokenizer,
        span_options,
        seed=options.seed,
        random_token_pool=held_out.collator.random_token_pool,
        dropout_seeds=True,
        static_shapes=shapes,
    )
    trainer = SpanPretrainingTrainer(
        model=model,
        args=arguments,
        train_dataset=training_blocks,
        eval_dataset=held_out.dataset,
        data_collator=collator,
        processing_class=tokenizer,
        tokens_per_batch=recipe.tokens_per_batch,
        held_out=held_out,
        capture=CapturedStep if options.cuda_graph else None,
    )
    trainer.add_callback(MetricsFile(run))
    show_progress(trainer, run, log_line)
    return trainer


def _without_prefix(metrics: dict) -> dict:
    return {name.split("_", 1)[1]: value for name, value in metrics.items()}


def _finish(run, summary, options, tokenizer, held_out, device) -> None:
    """Add what a reader looks at first: speed, curves, and a sentence that the model filled in."""
    lines = run_directory.read_metrics(run)
    speeds = sorted(line["tokens_per_second"] for line in lines)
    summary["tokens_per_second"] = speeds[len(speeds) // 2] if speeds else None
    summary["steps"] = options.recipe.max_steps
    summary["recipe"] = options.recipe_name
    if lines:
        draw_curves(run, summary)
    # loaded as a user will load it
    model = AutoModelForSpanPreTraining.from_pretrained(run / "model").to(device)
    masked, original = example_sentence(held_out, tokenizer)
    filled = FillSpan(model, tokenizer)(masked, head="both", top_k=1)[0]
    summary["example"] = {"masked": masked, "filled": filled.text, "original": original}
    write_json(run / run_directory.SUMMARY, summary)


def example_sentence(held_out: HeldOut, tokenizer, length: int = 40) -> tuple[str, str]:
    """(a held-out passage with two masked words near its middle, the passage itself)."""
    example = held_out.dataset[int(held_out.dataset.lengths.argmax())]
    ids, starts = (np.asarray(example[name])[1:-1] for name in ("input_ids", "word_starts"))
    ids, starts = ids[:length].tolist(), starts[:length].tolist()

    def is_word(place: int) -> bool:
        """Whether the piece is a whole word of letters."""
        whole = starts[place] and (place + 1 == len(ids) or starts[place + 1])
        return whole and tokenizer.decode(ids[place]).strip().isalpha()

    middle = len(ids) // 2
    pairs = [i for i in range(1, len(ids) - 2) if is_word(i) and is_word(i + 1)]
    first = min(pairs, key=lambda i: abs(i - middle), default=middle)
    masked = [*ids[:first], *[tokenizer.mask_token_id] * 2, *ids[first + 2 :]]
    return tokenizer.decode(masked), tokenizer.decode(ids)
