"""Cuts documents into packed segments, and keeps the position of each word in them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from spanbert_fast.data.tokenizer import piece_ids
from spanbert_fast.tasks.coref_documents import Document


class Segment(NamedTuple):
    """Words that the encoder reads together, with [CLS] and [SEP] around their pieces.

    Attributes:
        input_ids: the word pieces, with [CLS] and [SEP].
        firsts, lasts: the index in input_ids of each word's first and last piece.
        sentences: the number of each word's sentence.
    """

    input_ids: list[int]
    firsts: list[int]
    lasts: list[int]
    sentences: list[int]


def segments_of(
    document: Document, tokenizer: PreTrainedTokenizerBase, max_seq_length: int
) -> list[Segment]:
    """Cut a document into independent segments of whole sentences.

    A sentence that is longer than a segment starts a new one and continues in the next after a
    whole word. A word that is longer than a segment keeps its first pieces. A word without a piece
    becomes [UNK].
    """
    room = max_seq_length - 2
    pieces = piece_ids(tokenizer, document.words)
    segments: list[Segment] = []
    current = _started(tokenizer)
    word = 0
    for number, sentence in enumerate(document.sentences):
        own = [
            (ids or [tokenizer.unk_token_id])[:room] for ids in pieces[word : word + len(sentence)]
        ]
        word += len(sentence)
        if current.firsts and len(current.input_ids) - 1 + sum(map(len, own)) > room:
            segments.append(_ended(current, tokenizer))
            current = _started(tokenizer)
        for ids in own:
            if len(current.input_ids) - 1 + len(ids) > room:
                segments.append(_ended(current, tokenizer))
                current = _started(tokenizer)
            current.firsts.append(len(current.input_ids))
            current.input_ids.extend(ids)
            current.lasts.append(len(current.input_ids) - 1)
            current.sentences.append(number)
    if current.firsts:
        segments.append(_ended(current, tokenizer))
    return segments


def _started(tokenizer: PreTrainedTokenizerBase) -> Segment:
    return Segment([tokenizer.cls_token_id], [], [], [])


def _ended(segment: Segment, tokenizer: PreTrainedTokenizerBase) -> Segment:
    segment.input_ids.append(tokenizer.sep_token_id)
    return segment


def parts_of(
    document: Document,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    max_segments: int | None = None,
) -> Iterator[dict]:
    """A document as inputs of the model, in parts with similar numbers of segments.

    Args:
        max_segments: the most segments of a part; None for the whole document in one part.

    Yields:
        lists: input_ids of all segments one after another, segment_lengths, first_pieces and
        last_pieces and sentences of each word; and, where the document has clusters, gold_starts,
        gold_ends (words of the part) and gold_clusters of the mentions that lie in the part.
    """
    segments = segments_of(document, tokenizer, max_seq_length)
    count = len(segments)
    parts = 1 if max_segments is None else -(-count // max_segments)
    owners = [
        (start, end, number)
        for number, cluster in enumerate(document.clusters or [])
        for start, end in cluster
    ]
    word = 0
    for part in range(parts):
        chosen = segments[count * part // parts : count * (part + 1) // parts]
        window = _joined(chosen)
        words = len(window["first_pieces"])
        if document.clusters is not None:
            inside = [
                (start - word, end - word, number)
                for start, end, number in owners
                if word <= start and end < word + words
            ]
            for place, name in enumerate(("gold_starts", "gold_ends", "gold_clusters")):
                window[name] = [mention[place] for mention in inside]
        word += words
        yield window


def _joined(segments: Sequence[Segment]) -> dict[str, list[int]]:
    window: dict[str, list[int]] = {
        name: []
        for name in ("input_ids", "segment_lengths", "first_pieces", "last_pieces", "sentences")
    }
    number, previous = -1, None
    for segment in segments:
        offset = len(window["input_ids"])
        window["input_ids"] += segment.input_ids
        window["segment_lengths"].append(len(segment.input_ids))
        window["first_pieces"] += [offset + place for place in segment.firsts]
        window["last_pieces"] += [offset + place for place in segment.lasts]
        # a sentence in two segments counts as two, so that no mention crosses segments
        previous = None
        for sentence in segment.sentences:
            number += sentence != previous
            previous = sentence
            window["sentences"].append(number)
    return window


class CoreferenceCollator:
    """Makes one packed batch from parts of documents; its sequences are the segments."""

    def __call__(self, windows: Sequence[dict]) -> dict[str, torch.Tensor | int]:
        lengths = np.concatenate([window["segment_lengths"] for window in windows])
        words = [len(window["first_pieces"]) for window in windows]
        pieces = [len(window["input_ids"]) for window in windows]
        first_word, first_piece = _offsets(words), _offsets(pieces)
        sentences = _offsets([max(window["sentences"], default=-1) + 1 for window in windows])
        batch: dict[str, torch.Tensor | int] = {
            "input_ids": _shifted(windows, "input_ids", [0] * len(windows)),
            "cu_seqlens": torch.tensor(_offsets(lengths), dtype=torch.int32),
            "max_seqlen": int(max(lengths, default=0)),
            "first_pieces": _shifted(windows, "first_pieces", first_piece),
            "last_pieces": _shifted(windows, "last_pieces", first_piece),
            "sentences": _shifted(windows, "sentences", sentences),
            "cu_words": torch.tensor(first_word, dtype=torch.int32),
        }
        if all("gold_starts" in window for window in windows):
            clusters = _offsets(
                [max(window["gold_clusters"], default=-1) + 1 for window in windows]
            )
            batch["gold_starts"] = _shifted(windows, "gold_starts", first_word)
            batch["gold_ends"] = _shifted(windows, "gold_ends", first_word)
            batch["gold_clusters"] = _shifted(windows, "gold_clusters", clusters)
        return batch


def _offsets(counts: Sequence[int] | np.ndarray) -> list[int]:
    return [0, *np.cumsum(counts, dtype=np.int64).tolist()]


def _shifted(windows: Sequence[dict], name: str, offsets: Sequence[int]) -> torch.Tensor:
    parts = [
        np.asarray(window[name], np.int64) + offset
        for window, offset in zip(windows, offsets, strict=False)
    ]
    return torch.from_numpy(np.concatenate(parts))
