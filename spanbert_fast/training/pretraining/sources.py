"""What a run starts from: its tokenizer, its tokenised text and its initial model."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from spanbert_fast.data.corpus import load_documents
from spanbert_fast.data.embedded import embedded_documents
from spanbert_fast.data.prepare import is_prepared, open_shards, prepare, words_of
from spanbert_fast.data.shards import Shard
from spanbert_fast.data.tokenizer import (
    check_fits,
    load_tokenizer,
    tokenizer_fingerprint,
    train_wordpiece,
    vocabulary_size,
)
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.hub import check_name, folder_of
from spanbert_fast.models import AutoModelForSpanPreTraining, SpanBertForPreTraining
from spanbert_fast.models.span_objectives import SpanObjectives
from spanbert_fast.training.pretraining.options import PretrainOptions

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("spanbert_fast")

POOL_SIZE = 1 << 16  # entries of the pool from which random tokens are drawn


def check_paths(options: PretrainOptions, *, resume: bool = False) -> None:
    """Raise UsageError if a path in the options does not exist.

    A resumed run has tokenised its text already, so its data need not exist.
    """
    for data in () if resume else options.data:
        if not data.startswith("hf://") and not Path(data).exists():
            raise UsageError(f"--data {data} does not exist")
    for option, path in (("tokenizer", options.tokenizer), ("init-from", options.init_from)):
        if path is not None:
            check_name(path, f"--{option}")
    if options.init_from is not None and Path(options.init_from).is_dir():
        if not (Path(options.init_from) / "config.json").is_file():
            raise UsageError(
                f"--init-from {options.init_from} holds no checkpoint (no config.json)"
            )


def documents_of(paths: tuple[str, ...], max_line_bytes: int):
    """The documents of the files, or of the embedded corpus if there are none."""
    import datasets

    if paths:
        return load_documents(paths, max_line_bytes=max_line_bytes)
    return datasets.Dataset.from_dict({"text": embedded_documents()})


def text_and_tokenizer(
    options: PretrainOptions, run: Path, ready: "Dataset | None" = None
) -> tuple[list[Shard], PreTrainedTokenizerBase]:
    """(shards, tokenizer) of the run. Text that is not prepared is tokenised first.

    Args:
        ready: documents in place of `options.data`.

    Raises:
        UsageError: prepared data is mixed with raw text or has another tokenizer than asked for.
        DataError: the text is empty or malformed.
    """
    prepared = [is_prepared(path) for path in options.data]
    if any(prepared) and not all(prepared):
        raise UsageError("--data must be all prepared directories or none of them, got both")
    # a checkpoint's own tokenizer is the one that its embeddings belong to
    named = None
    if name := options.tokenizer or options.init_from:
        option = "--tokenizer" if options.tokenizer else "--init-from"
        named = folder_of(name, option, weights=False)
    if options.data and all(prepared):
        for path in options.data:
            if options.words not in (None, words_of(path)):
                raise UsageError(
                    f"--words {options.words}: --data {path} was prepared with --words "
                    f"{words_of(path)}"
                )
        tokenizer = load_tokenizer(named or options.data[0])
        fingerprint = tokenizer_fingerprint(tokenizer)
        shards = [shard for path in options.data for shard in open_shards(path, fingerprint)]
        _check_shards(shards, tokenizer)
        return shards, tokenizer
    shards_dir = run / "shards"
    if is_prepared(shards_dir):  # a resumed run
        tokenizer = load_tokenizer(shards_dir)
        shards = open_shards(shards_dir, tokenizer_fingerprint(tokenizer))
        _check_shards(shards, tokenizer)
        return shards, tokenizer
    documents = ready
    if documents is None:
        documents = documents_of(options.data, options.max_line_bytes)
    if named:
        tokenizer = load_tokenizer(named)
    else:
        size = options.recipe.vocab_size
        logger.info("training a WordPiece vocabulary of %d on %d documents", size, len(documents))
        tokenizer = train_wordpiece(documents["text"], size)
    logger.info("tokenising %d documents into %s", len(documents), shards_dir)
    prepare(documents, tokenizer, shards_dir, words=options.words or "tokenizer")
    return open_shards(shards_dir, tokenizer_fingerprint(tokenizer)), tokenizer


def _check_shards(shards: Sequence[Shard], tokenizer: PreTrainedTokenizerBase) -> None:
    size = vocabulary_size(tokenizer)
    for shard in shards:
        if shard.vocab_size != size:
            raise DataError(
                f"{shard.path}: vocab_size must be that of the tokenizer, {size}, got "
                f"{shard.vocab_size}"
            )


def initial_model(options: PretrainOptions, tokenizer: PreTrainedTokenizerBase) -> SpanObjectives:
    """A new SpanBERT, or the model of `--init-from`; see `from_pretrained` for the parts that a
    checkpoint may lack.

    Raises:
        UsageError: the checkpoint's architecture is not supported, or its vocabulary or position
            table is too small for the run.
        DataError: the checkpoint is incomplete or malformed.
    """
    recipe = options.recipe
    torch.manual_seed(options.seed)
    if options.init_from is None:
        config = recipe.model_config(vocabulary_size(tokenizer), tokenizer.pad_token_id)
        return SpanBertForPreTraining(config)
    fields = recipe.objective_fields()
    given = set(options.overrides)
    if "dropout" in given:
        given |= {"hidden_dropout_prob", "attention_probs_dropout_prob"}
    start = folder_of(options.init_from, "--init-from")
    try:
        model = AutoModelForSpanPreTraining.from_pretrained(
            start,
            dtype=torch.float32,  # fp32, however it is stored: half precision loses small steps
            **{name: value for name, value in fields.items() if name in given},
        )
    except UsageError as error:
        raise UsageError(f"--init-from {options.init_from}: {error}") from error
    _warn_of_another_vocabulary(start, tokenizer)
    check_fits(tokenizer, model.config.vocab_size, f"--init-from {options.init_from}")
    if recipe.max_seq_length > model.max_positions:
        raise UsageError(
            f"--max-seq-length {recipe.max_seq_length} is beyond the checkpoint's position table "
            f"of {model.max_positions}"
        )
    return model


def of_the_tokenizer(
    options: PretrainOptions, tokenizer: PreTrainedTokenizerBase
) -> PretrainOptions:
    """The options with sequences within the tokenizer's limit, unless the user chose a length."""
    limit, length = tokenizer.model_max_length, options.recipe.max_seq_length
    if length <= limit:
        return options
    if "max_seq_length" in options.overrides:
        logger.warning("--max-seq-length %d is beyond the tokenizer's limit of %d", length, limit)
        return options
    logger.info("sequences have at most %d tokens, the tokenizer's limit", limit)
    return dataclasses.replace(options, overrides={**options.overrides, "max_seq_length": limit})


def _warn_of_another_vocabulary(checkpoint: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        own = tokenizer_fingerprint(load_tokenizer(checkpoint))
    except UsageError:  # the checkpoint came without a tokenizer: nothing to compare
        return
    if own != tokenizer_fingerprint(tokenizer):
        logger.warning(
            "--init-from %s comes with another tokenizer than this run's: its embeddings may mean "
            "other word pieces",
            checkpoint,
        )


def random_token_pool(counts: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """int64 (about POOL_SIZE,): word pieces for random replacement, as frequent as in the text.

    Args:
        counts: (vocab,), how often each word piece occurs in the text.

    Raises:
        DataError: the text has no word piece that is not special.
    """
    counts = counts.astype(np.float64)
    counts[tokenizer.all_special_ids] = 0
    if not counts.any():
        raise DataError("the text has no word piece that the tokenizer knows")
    repeats = np.ceil(counts * (POOL_SIZE / counts.sum())).astype(np.int64)
    return torch.from_numpy(np.repeat(np.arange(len(counts)), repeats))
