"""Coreference resolution: finds the mentions of a document that refer to the same entity."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks.base import Bad, Defaults, DocumentTask
from spanbert_fast.tasks.coref_documents import Cluster, Document
from spanbert_fast.tasks.coref_metrics import coreference_scores
from spanbert_fast.tasks.coref_reading import FORMATS, format_of, read_documents
from spanbert_fast.tasks.coref_text import sentences_of
from spanbert_fast.tasks.coref_writing import write_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("spanbert_fast")

HEADS = ("start-to-end", "coarse-to-fine")


class Resolved(NamedTuple):
    """What `resolve` returns.

    Attributes:
        words: the words of the text, in order.
        clusters: mentions as (first word, last word), both inclusive.
    """

    words: list[str]
    clusters: list[Cluster]

    def texts(self) -> list[list[str]]:
        """The text of each cluster's mentions."""
        return [
            [" ".join(self.words[start : end + 1]) for start, end in cluster]
            for cluster in self.clusters
        ]


def resolve(
    model,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    max_seq_length: int = 384,
    singletons: bool = False,
) -> Resolved:
    """Resolve coreference in a plain text of any length.

        >>> from transformers import AutoTokenizer
        >>> from spanbert_fast import SpanBertForCoreference
        >>> tokenizer = AutoTokenizer.from_pretrained("runs/first/model")
        >>> model = SpanBertForCoreference.from_pretrained("runs/first/model")
        >>> resolve(model, tokenizer, "Ann saw Tom.", max_seq_length=32).words
        ['Ann', 'saw', 'Tom', '.']

    Args:
        model: a SpanBertForCoreference.
        text: split into sentences and words by the rules of `coref_text`; a blank line ends a
            paragraph.
        max_seq_length: word pieces of a segment, as in training.
        singletons: also return mentions that nothing else refers to.
    """
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    sentences = [sentence for part in paragraphs for sentence in sentences_of(part)]
    if not sentences:
        return Resolved([], [])
    document = Document("text", "text", "0", sentences, None)
    task = Coreference(max_seq_length=max_seq_length, singletons=singletons)
    return Resolved(document.words, next(task.predictions(model, [document], tokenizer)))


class Coreference(DocumentTask):
    """Clusters of mentions in documents of any length.

        >>> import json; from pathlib import Path
        >>> item = {"sentences": [["Ann", "saw", "her", "cat"]], "clusters": [[[0, 0], [2, 2]]]}
        >>> _ = Path("dev.jsonlines").write_text(json.dumps(item))
        >>> Coreference().read("dev.jsonlines").items[0].clusters
        [[(0, 0), (2, 2)]]

    A document is cut into segments of `max_seq_length` word pieces at ends of sentences; in
    training a document of more than `max_training_segments` segments is cut into parts of similar
    lengths, and every part is used. (The paper takes one random part of it in each epoch.)

    Args:
        format: one of `coref_reading.FORMATS`; None to find it from each file.
        coref_head: "start-to-end" (Kirstain et al. 2021) or "coarse-to-fine" (Joshi et al. 2019).
        max_training_segments: see above.
        singletons: whether clusters of one are predicted and measured; None for whether the
            training data has any.
        max_span_width: words of the longest mention.
        top_span_ratio, coref_feature_size, coref_depth, max_top_antecedents, mention_loss_weight:
            see `SpanBertConfig`.
        max_seq_length, labels: see `Task`; labels are None.

    Raises:
        UsageError: an option has another value.
    """

    name = "coref"
    head = "coreference"
    metric = "conll_f1"
    # Joshi et al. 2020, appendix B: for base 1e-5 or 2e-5, for the head 2e-4 or 3e-4; 20 epochs,
    # one document per step, segments of 384.
    defaults = Defaults(
        learning_rate=2e-5,
        epochs=20,
        batch_size=1,
        max_seq_length=384,
        head_learning_rate=3e-4,
    )
    predictions_file = "predictions.conll"

    def __init__(
        self,
        *,
        format: str | None = None,
        coref_head: str = "start-to-end",
        max_training_segments: int = 3,
        singletons: bool | None = None,
        max_span_width: int = 30,
        top_span_ratio: float = 0.4,
        coref_feature_size: int = 0,
        coref_depth: int = 1,
        max_top_antecedents: int = 50,
        mention_loss_weight: float = 1.0,
        max_seq_length: int | None = None,
        labels: Sequence[str] | None = None,
    ):
        super().__init__(max_seq_length=max_seq_length, labels=labels)
        for name, choice, allowed in (
            ("format", format, (None, *FORMATS)),
            ("coref-head", coref_head, HEADS),
        ):
            if choice not in allowed:
                wanted = ", ".join(v for v in allowed if v)
                raise UsageError(f"--{name} must be one of {wanted}, got {choice}")
        if self.max_seq_length < 3:  # [CLS], a piece, [SEP]
            raise UsageError(f"--max-seq-length must be at least 3, got {self.max_seq_length}")
        for name, value in (
            ("max-training-segments", max_training_segments),
            ("max-span-width", max_span_width),
            ("coref-depth", coref_depth),
            ("max-top-antecedents", max_top_antecedents),
        ):
            if value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        if not top_span_ratio > 0:
            raise UsageError(f"--top-span-ratio must be above 0, got {top_span_ratio}")
        self.format, self.singletons = format, singletons
        self.max_training_segments = max_training_segments
        self.fields: dict[str, Any] = {
            "coref_head": coref_head,
            "coref_feature_size": coref_feature_size,
            "coref_depth": coref_depth,
            "max_span_width": max_span_width,
            "max_top_antecedents": max_top_antecedents,
            "mention_loss_weight": mention_loss_weight,
            "top_span_ratio": top_span_ratio,
        }

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """See `Task`."""
        add = parser.add_argument
        add("--format", choices=FORMATS, help="of the data (default: found out)")
        add("--coref-head", choices=HEADS, help="what scores mentions and pairs (start-to-end)")
        add("--max-training-segments", type=int, metavar="N", help="of a document's part (3)")
        add("--singletons", action=argparse.BooleanOptionalAction,
            help="predict and measure clusters of one (default: as the training data)")  # fmt: skip
        add("--max-span-width", type=int, metavar="N", help="words of the longest mention (30)")
        add("--top-span-ratio", type=float, metavar="X", help="mentions kept a word (0.4)")
        add("--coref-feature-size", type=int, metavar="N", help="of the head (hidden size)")
        add("--coref-depth", type=int, metavar="N", help="2: higher-order coarse-to-fine (1)")
        add("--max-top-antecedents", type=int, metavar="N", help="coarse-to-fine keeps (50)")
        add("--mention-loss-weight", type=float, metavar="X", help="beside the antecedents' (1.0)")

    def state(self) -> dict[str, Any]:
        """See `Task`."""
        own = {"singletons": self.singletons, "max_training_segments": self.max_training_segments}
        return {**super().state(), **own, **self.fields}

    def config_fields(self) -> dict[str, Any]:
        """See `DocumentTask`."""
        return dict(self.fields)

    # Data

    def parse(self, path: Path) -> Iterator[Document | Bad]:
        """See `Task` and `coref_reading`."""
        return read_documents(path, self.format or format_of(path))

    def learn(self, examples: Sequence[Document]) -> None:
        """Set `singletons`, if it is None: whether the data has a cluster of one mention.

        Raises:
            DataError: a document has no annotation, or no document has a mention.
        """
        clusters: list[Cluster] = []
        for example in examples:
            if example.clusters is None:
                raise DataError(f"{example.place}: has no clusters to learn from")
            clusters += example.clusters
        sizes = [len(cluster) for cluster in clusters]
        if not sizes:
            raise DataError(f"{examples[0].place}: no document has a mention")
        if self.singletons is None:
            self.singletons = 1 in sizes
        width = self.fields["max_span_width"]
        spans = [span for cluster in clusters for span in cluster]
        longer = sum(end - start >= width for start, end in spans)
        if longer:
            logger.warning(
                "%s of %s mentions have more than %d words (--max-span-width) and are not learnt",
                f"{longer:,}", f"{len(spans):,}", width,
            )  # fmt: skip

    def has_answers(self, examples: Sequence[Document]) -> bool:
        """See `Task`."""
        return all(example.clusters is not None for example in examples)

    def windows(self, example: Document, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict]:
        """See `Task`; parts of the document, see `coref_segments.parts_of`."""
        from spanbert_fast.tasks.coref_segments import parts_of

        return parts_of(example, tokenizer, self.max_seq_length, self.max_training_segments)

    def collator(self):
        """See `DocumentTask`."""
        from spanbert_fast.tasks.coref_segments import CoreferenceCollator

        return CoreferenceCollator()

    # Results

    def predictions(
        self, model, examples: Sequence[Document], tokenizer: PreTrainedTokenizerBase, **options
    ) -> Iterator[list[Cluster]]:
        """See `DocumentTask` and `coref_predict.document_clusters`."""
        from spanbert_fast.tasks.coref_predict import document_clusters

        return document_clusters(
            model,
            examples,
            tokenizer,
            max_seq_length=self.max_seq_length,
            singletons=bool(self.singletons),
            **options,
        )

    def metrics(self, examples: Sequence[Document], predictions) -> dict[str, float]:
        """All figures of `coreference_scores`, in percent."""
        gold = [example.clusters or [] for example in examples]
        return coreference_scores(gold, predictions, singletons=bool(self.singletons))

    def write(
        self, path: Path, examples: Sequence[Document], predictions: Iterable[list[Cluster]]
    ) -> list[Path]:
        """See `coref_writing.write_documents`."""
        return write_documents(path, examples, predictions)
