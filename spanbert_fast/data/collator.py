"""`DataCollatorForSpanMasking`: makes a masked batch with its targets from a list of examples."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from spanbert_fast.data.static_shapes import StaticShapes
from spanbert_fast.data.tokenizer import vocabulary_size
from spanbert_fast.data.words import WordStarts
from spanbert_fast.ops.sample_spans import SpanSample, sample_spans
from spanbert_fast.ops.span_options import SpanOptions, derived_seed, signed64
from spanbert_fast.values import IGNORED_TARGET

OUTPUTS = ("packed", "padded", "masked_lm", "raw")
_SHARED = ("cu_seqlens", "max_seqlen", "dropout_seed")  # of raw and packed batches
_EPOCH_SHIFT, _EPOCH_LIMIT = 40, 2**23


def sequence_id(epoch: int, example_id: int) -> int:
    """The number by which a sequence's masks are drawn, a signed 64-bit integer.

    It is unique for example ids in [0, 2**40) and epochs in [0, 2**23). Wider ids, such as content
    hashes, collide no more often than random 64-bit numbers do.
    """
    if not 0 <= epoch < _EPOCH_LIMIT:
        raise ValueError(f"epoch must be in [0, 2**23), got {epoch}")
    if not -(2**63) <= example_id < 2**64:
        raise ValueError(f"example_id must be a 64-bit integer, got {example_id}")
    return signed64(example_id ^ epoch << _EPOCH_SHIFT)


class DataCollatorForSpanMasking:
    """Masks spans and makes batches, for `SpanBertForPreTraining` or a stock masked-LM model.

        >>> from transformers import AutoTokenizer
        >>> tokenizer = AutoTokenizer.from_pretrained("runs/first/model")
        >>> collate = DataCollatorForSpanMasking(tokenizer, seed=1)
        >>> batch = collate([tokenizer("The river follows the winter."), tokenizer("A letter.")])
        >>> len(batch["cu_seqlens"]) - 1, len(batch["mlm_targets"]) > 0
        (2, True)

    - `word_starts`: bool per token; without it, the tokenizer says (see `WordStarts`);
    - `special_tokens_mask`: per token, true where it is never masked; without it, the tokenizer's
      special tokens except the unknown token;
    - `example_id`: an integer; without it, a hash of input_ids: equal texts get equal masks;
    - `epoch`: an integer; without it, the collator's;
    - `given_spans`: (first, last) pairs of places in the example, for the scheme "given".

    The masks of an example depend on (seed, epoch, example_id) and its text, but not on the batch,
    the order or the number of workers. With the Hugging Face `Trainer`, set
    `remove_unused_columns=False` to keep these columns. Workers hold copies of the collator: set
    `epoch` before new workers start, or put it into the examples.

    Args:
        tokenizer: a fast one (WordPiece, byte-level BPE, SentencePiece), or any other where
            examples bring `word_starts`.
        options: how spans are drawn; default: those of the paper.
        seed: any 64-bit integer.
        epoch: in [0, 2**23); also an attribute to set.
        output: "packed" (no padding: input_ids (total_tokens,), cu_seqlens, max_seqlen and the span
            fields of `sample_spans`) and "padded" (input_ids and attention_mask (batch, seqlen),
            and the same fields in rows of (batch * seqlen)) are keyword arguments of
            `SpanBertForPreTraining`. "masked_lm" (input_ids, attention_mask and labels, -100 where
            no loss is taken) suits any masked-LM model. "raw" is not masked yet; `mask` does that
            on the model's device.
        random_token_pool: int64 (pool,), see `sample_spans`; default: every token of the vocabulary
            once, without special tokens.
        dropout_seeds: add `dropout_seed`, an int64 0-dim tensor that follows from the seed and from
            epoch and example_id of the first example.
        static_shapes: sizes to which every batch is filled up; with "packed", and with "raw" by
            `mask`.
        pad_to_multiple_of: round seqlen up to a multiple; with "padded" and "masked_lm".
        words: "tokenizer", or for languages without spaces "tokens" or "characters": see
            `WordStarts.of`.

    Raises:
        ValueError: the tokenizer has no mask token; an option or an example is not as above.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        options: SpanOptions = SpanOptions(),  # noqa: B008
        *,
        seed: int = 0,
        epoch: int = 0,
        output: str = "packed",
        random_token_pool: torch.Tensor | None = None,
        dropout_seeds: bool = False,
        static_shapes: StaticShapes | None = None,
        pad_to_multiple_of: int | None = None,
        words: str = "tokenizer",
    ):
        if tokenizer.mask_token_id is None:
            raise ValueError("tokenizer must have a mask token, got one whose mask_token is None")
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
        if output in ("padded", "masked_lm") and tokenizer.pad_token_id is None:
            raise ValueError("tokenizer must have a pad token, got one whose pad_token is None")
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of must be at least 1, got {pad_to_multiple_of}")
        law = options.law()
        self._uses_given = law.scheme_thresholds[0] > 0
        if static_shapes is not None:
            _check_static_shapes(static_shapes, output, law.max_span_targets)
        self.static_shapes = static_shapes
        self.seed, self.epoch, self.output = seed, epoch, output
        self.dropout_seeds = dropout_seeds
        self.pad_to_multiple_of = pad_to_multiple_of
        self.options = options
        self.mask_token_id = tokenizer.mask_token_id
        self.pad_token_id = tokenizer.pad_token_id
        special = set(tokenizer.all_special_ids)
        self._is_special = np.zeros(vocabulary_size(tokenizer), dtype=bool)
        self._is_special[list(special - {tokenizer.unk_token_id})] = True
        self._starts_word = WordStarts.of(tokenizer, words)
        if random_token_pool is None:
            random_token_pool = torch.tensor(sorted({*tokenizer.get_vocab().values()} - special))
        self.random_token_pool = random_token_pool

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch of one or more examples."""
        raw = self._raw(examples)
        if self.output == "raw":
            return raw
        if self.output == "packed":
            return self.mask(raw)
        batch = self._padded(self._sample(raw), raw["cu_seqlens"], raw["max_seqlen"])
        return batch | {name: raw[name] for name in ("dropout_seed",) if name in raw}

    def mask(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Mask a raw batch on its own device. The result equals that of `output="packed"` bit for
        bit. A GPU needs the extension compiled with CUDA."""
        batch = {name: raw[name] for name in _SHARED if name in raw}
        batch |= _targets(self._sample(raw))
        if self.static_shapes is None:
            return batch
        return self.static_shapes.fill(batch, self.pad_token_id or 0)

    def _raw(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if len(examples) == 0:
            raise ValueError("examples must hold at least one example, got none")
        rows = [_integers(i, example) for i, example in enumerate(examples)]
        lengths = np.array([len(row) for row in rows])
        cu_seqlens = torch.zeros(len(rows) + 1, dtype=torch.int32)
        cu_seqlens[1:] = torch.from_numpy(lengths.cumsum())
        ids = np.concatenate(rows)
        self._check_ids(ids, cu_seqlens)
        names = [self._sequence_id(*pair) for pair in zip(examples, rows, strict=True)]
        raw = {
            "input_ids": torch.from_numpy(ids),
            "cu_seqlens": cu_seqlens,
            "max_seqlen": int(lengths.max()),
            "word_starts": torch.from_numpy(self._word_starts(examples, rows)),
            "special_mask": torch.from_numpy(self._special_mask(examples, rows)),
            "sequence_ids": torch.tensor(names),
        }
        if self._uses_given:
            raw["given_spans"] = _given_spans(examples, cu_seqlens)
        if self.dropout_seeds:
            raw["dropout_seed"] = torch.tensor(derived_seed(self.seed, names[0]))
        return raw

    def _sample(self, raw: Mapping[str, Any]) -> SpanSample:
        device = raw["input_ids"].device
        if device != self.random_token_pool.device:
            self.random_token_pool = self.random_token_pool.to(device)
        return sample_spans(
            raw["input_ids"],
            raw["cu_seqlens"],
            raw["word_starts"],
            seed=self.seed,
            sequence_ids=raw["sequence_ids"],
            mask_token_id=self.mask_token_id,
            random_token_pool=self.random_token_pool,
            special_mask=raw["special_mask"],
            options=self.options,
            given_spans=raw.get("given_spans"),
        )

    def _check_ids(self, ids: np.ndarray, cu_seqlens: torch.Tensor) -> None:
        size = len(self._is_special)
        if len(ids) and (ids.min() < 0 or ids.max() >= size):
            where = int(np.flatnonzero((ids < 0) | (ids >= size))[0])
            example = int(torch.searchsorted(cu_seqlens, where, right=True)) - 1
            raise ValueError(
                f"examples[{example}]['input_ids'] must be in [0, {size}), got {ids[where]}"
            )

    def _sequence_id(self, example: Mapping[str, Any], row: np.ndarray) -> int:
        name = example.get("example_id")
        if name is None:
            digest = hashlib.blake2b(row.astype("<i8", copy=False).tobytes(), digest_size=8)
            name = int.from_bytes(digest.digest(), "little")
        return sequence_id(int(example.get("epoch", self.epoch)), int(name))

    def _word_starts(self, examples: Sequence[Mapping[str, Any]], rows: list) -> np.ndarray:
        def from_table(row: np.ndarray) -> np.ndarray:
            if self._starts_word is None:
                raise ValueError(
                    "examples must have word_starts where the tokenizer does not mark words, "
                    "got some without"
                )
            return self._starts_word(row)

        return _flags("word_starts", examples, rows, from_table)

    def _special_mask(self, examples: Sequence[Mapping[str, Any]], rows: list) -> np.ndarray:
        return _flags("special_tokens_mask", examples, rows, self._is_special.__getitem__)

    def _padded(
        self, sample: SpanSample, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> dict[str, torch.Tensor]:
        multiple = self.pad_to_multiple_of or 1
        batch, seqlen = len(cu_seqlens) - 1, -(-max_seqlen // multiple) * multiple
        kept = torch.arange(seqlen) < cu_seqlens.diff()[:, None]
        padded = torch.full((batch, seqlen), self.pad_token_id)
        padded[kept] = sample.input_ids
        fields = {"input_ids": padded, "attention_mask": kept.long()}
        row_of = kept.flatten().nonzero().squeeze(1)  # a packed position's row of (batch * seqlen)
        if self.output == "masked_lm":
            labels = torch.full((batch * seqlen,), IGNORED_TARGET)
            labels[row_of[sample.mlm_positions]] = sample.mlm_targets
            return {**fields, "labels": labels.view(batch, seqlen)}
        targets = _targets(sample) | {"input_ids": padded}
        for name in ("mlm_positions", "span_boundaries"):
            targets[name] = row_of[targets[name]]
        return {**fields, **targets}


def _check_static_shapes(shapes: StaticShapes, output: str, max_span_targets: int) -> None:
    if output not in ("packed", "raw"):
        raise ValueError(f"static_shapes must be None with padded output, got output={output!r}")
    if shapes.max_span_targets != max_span_targets:
        raise ValueError(
            f"static_shapes.max_span_targets must be the collator's {max_span_targets}, got "
            f"{shapes.max_span_targets}"
        )


def _integers(i: int, example: Mapping[str, Any]) -> np.ndarray:
    """An example's tokens as int64 (seqlen,)."""
    row = np.asarray(example["input_ids"])
    if row.ndim != 1:
        raise ValueError(f"examples[{i}]['input_ids'] must have shape (seqlen,), got {row.shape}")
    if len(row) == 0:
        raise ValueError(f"examples[{i}]['input_ids'] must hold at least one token, got none")
    if row.dtype.kind not in "iu":
        raise TypeError(f"examples[{i}]['input_ids'] must be integers, got {row.dtype}")
    attention_mask = example.get("attention_mask")
    if attention_mask is not None and not np.all(attention_mask):
        raise ValueError(f"examples[{i}] must not be padded, got an attention_mask with zeros")
    return row.astype(np.int64, copy=False)


def _flags(name: str, examples: Sequence[Mapping[str, Any]], rows: list, default) -> np.ndarray:
    """One bool per packed token: that of the example, or else `default(row)`."""
    flags = []
    for i, (example, row) in enumerate(zip(examples, rows, strict=True)):
        own = example.get(name)
        flags.append(default(row) if own is None else np.asarray(own, dtype=bool))
        if flags[-1].shape != row.shape:
            raise ValueError(
                f"examples[{i}][{name!r}] must have shape {row.shape} as input_ids has, "
                f"got {flags[-1].shape}"
            )
    return np.concatenate(flags)


def _given_spans(examples: Sequence[Mapping[str, Any]], cu_seqlens: torch.Tensor) -> torch.Tensor:
    """The examples' given spans in packed rows, int64 (num_given, 2)."""
    spans = []
    for i, (example, begin) in enumerate(zip(examples, cu_seqlens.tolist(), strict=False)):
        own = torch.as_tensor(example.get("given_spans", []), dtype=torch.int64).reshape(-1, 2)
        length = int(cu_seqlens[i + 1]) - begin
        if len(own) and not 0 <= int(own.min()) <= int(own.max()) < length:
            raise ValueError(
                f"examples[{i}]['given_spans'] must be in [0, {length}), got {own.tolist()}"
            )
        spans.append(own + begin)
    return torch.cat(spans)


def _targets(sample: SpanSample) -> dict[str, torch.Tensor]:
    """The fields that `SpanBertForPreTraining` takes."""
    return {
        "input_ids": sample.input_ids,
        "mlm_positions": sample.mlm_positions,
        "mlm_targets": sample.mlm_targets,
        "span_boundaries": sample.span_boundaries,
        "cu_span_lengths": sample.cu_span_lengths,
        "sbo_targets": sample.sbo_targets,
    }
