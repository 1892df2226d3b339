"""Predicts coreference: encodes segments in batches, then resolves each document as a whole."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from spanbert_fast.models import SpanBertForCoreference
from spanbert_fast.models.evaluation_mode import evaluation_mode
from spanbert_fast.models.inputs import EncoderInputs
from spanbert_fast.tasks.coref_documents import Cluster, Document
from spanbert_fast.tasks.coref_segments import CoreferenceCollator, parts_of


@torch.no_grad()
def document_clusters(
    model: SpanBertForCoreference,
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int,
    singletons: bool,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    tokens_per_batch: int = 8192,
    progress: bool = False,
) -> Iterator[list[Cluster]]:
    """Yield the clusters of each document, in order, as soon as they are known.

    Short documents are resolved together, a long one alone; memory grows linearly with its words.

    Args:
        singletons: keep mentions without a link as clusters of one if their mention score is
            above 0.
        tokens_per_batch: the most word pieces in one forward of the encoder.

    Raises:
        FloatingPointError: the model's scores are not finite.
    """
    device = next(model.parameters()).device
    core = getattr(model, "module", model)
    waiting: list[tuple[Document, dict]] = []
    bar = tqdm(total=len(documents), unit="document", disable=not progress)

    def resolved() -> Iterator[list[Cluster]]:
        batch: dict[str, Any] = CoreferenceCollator()([window for _, window in waiting])
        with autocast():
            hidden, words = _encoded(core, batch, device, tokens_per_batch)
            out = core.resolve_words(hidden, *words)
        names = ("mention_starts", "mention_ends", "mention_scores", "antecedents")
        arrays = [out[name].cpu() for name in names]
        if not arrays[2].isfinite().all() or out["antecedent_scores"].isnan().any():
            raise FloatingPointError(f"{waiting[0][0].place}: the model's outputs are not finite")
        bounds = batch["cu_words"].tolist()
        per_document = _clusters([array.tolist() for array in arrays], bounds, singletons)
        for _ in waiting:
            bar.update()
        waiting.clear()
        yield from per_document

    with evaluation_mode(model), bar:
        pieces = 0
        for document in documents:
            unlabelled = Document(**{**vars(document), "clusters": None})
            (window,) = parts_of(unlabelled, tokenizer, max_seq_length)
            size = len(window["input_ids"])
            if waiting and pieces + size > tokens_per_batch:
                yield from resolved()
                pieces = 0
            waiting.append((document, window))
            pieces += size
        if waiting:
            yield from resolved()


def _encoded(model: SpanBertForCoreference, batch: dict, device: torch.device, most: int):
    """(hidden, words) of a batch; its segments are encoded with at most `most` word pieces at a
    time."""
    bounds = batch["cu_seqlens"].tolist()
    input_ids = batch["input_ids"].to(device)
    parts, first = [], 0
    while first < len(bounds) - 1:
        last = first + 1
        while last < len(bounds) - 1 and bounds[last + 1] - bounds[first] <= most:
            last += 1
        cu_seqlens = batch["cu_seqlens"][first : last + 1] - bounds[first]
        inputs = EncoderInputs.of(
            input_ids[bounds[first] : bounds[last]],
            cu_seqlens=cu_seqlens.to(device),
            max_seqlen=int(cu_seqlens.diff().max()),
            max_positions=model.config.max_position_embeddings,
        )
        parts.append(model.bert.encode(inputs).hidden_states)
        first = last
    names = ("first_pieces", "last_pieces", "sentences", "cu_words")
    return torch.cat(parts), (batch[name].to(device) for name in names)


def _clusters(
    arrays: Sequence[list], bounds: Sequence[int], singletons: bool
) -> list[list[Cluster]]:
    """Each document's clusters: a mention joins the cluster of its antecedent."""
    found: list[list[tuple[Cluster, float]]] = [[] for _ in bounds[1:]]
    cluster_of: list[Cluster] = []
    document = 0
    for start, end, score, antecedent in zip(*arrays, strict=True):
        while start >= bounds[document + 1]:
            document += 1
        if antecedent >= 0:
            cluster = cluster_of[antecedent]
        else:
            cluster = []
            found[document].append((cluster, score))
        cluster.append((start - bounds[document], end - bounds[document]))
        cluster_of.append(cluster)
    return [
        [
            cluster
            for cluster, first_score in clusters
            if len(cluster) > 1 or (singletons and first_score > 0)
        ]
        for clusters in found
    ]
