"""Pipelines over texts of any length: question answering, and named entities.

    import spanbert_fast.pipelines           # transformers' pipeline() knows "question-answering"
    from transformers import pipeline
    reader = pipeline("question-answering", model="runs/squad2/model")
    reader(question="What?", context=text)

A text is read in windows that overlap; the windows of all inputs are batched together by length.
`pipeline` of this module does the same, and has "token-classification" over whole documents, too.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import transformers
from transformers import AutoModelForQuestionAnswering, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from spanbert_fast.accelerated.accelerate import accelerate
from spanbert_fast.models.base import SpanBertPreTrainedModel
from spanbert_fast.tasks import entities
from spanbert_fast.tasks.base import Example, Task
from spanbert_fast.tasks.ner import NamedEntities, Sentence
from spanbert_fast.tasks.predict import predict
from spanbert_fast.tasks.qa import QuestionAnswering
from spanbert_fast.tasks.qa_decoding import Prediction
from spanbert_fast.tasks.qa_reading import Question

_WORD = re.compile(r"\w+|[^\w\s]")


class WindowedPipeline(Pipeline):
    """A pipeline whose inputs are examples of a task, which makes windows of them."""

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        if not isinstance(self.model, SpanBertPreTrainedModel) and "Bert" in type(model).__name__:
            accelerate(self.model)

    def _sanitize_parameters(self, **options) -> tuple[dict, dict, dict]:
        return options, {}, {}

    def task_of(self, options: dict) -> Task:
        """The task with these options."""
        raise NotImplementedError

    def preprocess(self, input_: Sequence[Example], **options) -> Any:
        """(task with the caller's options, examples)."""
        longest = min(512, self.model.config.max_position_embeddings)
        return self.task_of({"max_seq_length": longest, **options}), list(input_)

    def _forward(self, input_tensors: Any, batch_size: Any = 16, **options) -> Any:
        task, examples = input_tensors
        tokens = batch_size * task.max_seq_length
        return predict(self.model, task, examples, self.tokenizer, tokens_per_batch=tokens)

    def postprocess(self, model_outputs: Any, **options) -> Any:
        """The predictions as they are: a task decodes its own."""
        return model_outputs

    def predictions(self, examples: Sequence[Example], batch_size: int, options: dict) -> list:
        """One per example, all windows in common batches."""
        with self.device_placement():
            return self._forward(self.preprocess(examples, **options), batch_size)


class QuestionAnsweringPipeline(WindowedPipeline):
    """Answers from texts of any length, with the inputs and outputs that transformers 4 had."""

    def task_of(self, options: dict) -> QuestionAnswering:
        """The task that reads the questions."""
        return QuestionAnswering(**options)

    def __call__(
        self,
        *inputs: Any,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        top_k: int = 1,
        handle_impossible_answer: bool = False,
        batch_size: int = 16,
        **options,
    ) -> dict | list:
        """Answer one question, or each of many.

        Args:
            inputs: {"question": ..., "context": ...}, or a list of these.
            question, context: in place of inputs; a list of each, or one context for all.
            top_k: answers of a question; above 1 the result of each is a list.
            handle_impossible_answer: the answer may be "".
            batch_size: windows of full length of one forward.
            options: of `tasks.qa.QuestionAnswering`: doc_stride, max_seq_length, ...

        Returns:
            score (the answer's probability among those kept), start, end and answer; a list of
            them for a list.

        Raises:
            ValueError: a question or a context is missing or blank.
        """
        pairs, is_one = _pairs(inputs, question, context)
        examples = [Question(str(i), f"question {i}", *pair) for i, pair in enumerate(pairs)]
        found = self.predictions(examples, batch_size, options)
        answers = [_answers(prediction, top_k, handle_impossible_answer) for prediction in found]
        rows = [best[0] if top_k == 1 else best for best in answers]
        return rows[0] if is_one else rows


def _pairs(inputs: tuple, question: Any, context: Any) -> tuple[list[tuple[str, str]], bool]:
    if inputs:
        items: Any = inputs[0] if len(inputs) == 1 else list(inputs)
        is_one = isinstance(items, Mapping)
        pairs = [(item["question"], item["context"]) for item in ([items] if is_one else items)]
    else:
        is_one = isinstance(question, str)
        questions = [question] if is_one else list(question or ())
        contexts = [context] * len(questions) if isinstance(context, str) else list(context or ())
        pairs = list(zip(questions, contexts, strict=True))
    for asked, text in pairs:
        if not (
            isinstance(asked, str) and isinstance(text, str) and asked.strip() and text.strip()
        ):
            raise ValueError(f"question and context must not be blank, got {asked!r}, {text!r}")
    if not pairs:
        raise ValueError("question and context must be given, got none")
    return pairs, is_one


def _answers(prediction: Prediction, top_k: int, may_be_empty: bool) -> list[dict]:
    answers = prediction.nbest + [prediction.null] * (may_be_empty or not prediction.nbest)
    answers.sort(key=lambda answer: -answer.score)  # the order of `rows`
    return [
        {"score": row["probability"], "start": a.start, "end": a.end, "answer": a.text}
        for a, row in zip(answers, prediction.rows(may_be_empty), strict=True)
    ][:top_k]


class _Entities(NamedEntities):
    """Also says how sure the model is of each word's tag."""

    def decode(self, example: Sentence, windows, outputs) -> list[Any]:
        """(tag, probability) of each word."""
        scores = self.word_scores(example, windows, outputs)
        with np.errstate(over="ignore"):
            shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        labels = self.learnt_labels()
        tags = entities.best_path(scores, labels)
        number = {label: i for i, label in enumerate(labels)}
        return [(tag, float(shares[i, number.get(tag, 0)])) for i, tag in enumerate(tags)]


class EntityPipeline(WindowedPipeline):
    """Named entities of documents of any length, by the best allowed path of BIO tags."""

    def task_of(self, options: dict) -> NamedEntities:
        """The task that reads the texts, with the model's own labels."""
        names: Any = self.model.config.id2label
        return _Entities(labels=[names[i] for i in range(len(names))], **options)

    def __call__(  # type: ignore[override]  # of positional arguments only batch_size has a meaning
        self, inputs: str | Sequence[str], batch_size: int = 16, **options
    ) -> list:
        """The entities of a text, or of each of many.

        Args:
            batch_size: windows of full length of one forward.
            options: of `tasks.ner.NamedEntities`: max_seq_length.

        Returns:
            a list of entity_group, score (the mean over its words), word, start and end, with
            characters of the text; a list of lists for a list.
        """
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        words = [list(_WORD.finditer(text)) for text in texts]
        examples = [
            Sentence(str(i), f"text {i}", [word[0] for word in found], None)
            for i, found in enumerate(words)
        ]
        read = iter(self.predictions([e for e in examples if e.words], batch_size, options))
        rows = [
            _groups(text, found, next(read)) if found else []
            for text, found in zip(texts, words, strict=True)
        ]
        return rows[0] if isinstance(inputs, str) else rows


def _groups(text: str, words: list[re.Match], tags: list[tuple[str, float]]) -> list[dict]:
    rows = []
    for first, last, kind in sorted(entities.spans([tag for tag, _ in tags])):
        start, end = words[first].start(), words[last].end()
        score = float(np.mean([share for _, share in tags[first : last + 1]]))
        row = {"entity_group": kind, "score": score, "word": text[start:end]}
        rows.append({**row, "start": start, "end": end})
    return rows


_CLASSES = {
    "question-answering": QuestionAnsweringPipeline,
    "token-classification": EntityPipeline,
    "ner": EntityPipeline,
}


def pipeline(task: str, model: Any, **kwargs) -> Pipeline:
    """transformers' `pipeline` with this module's classes; other tasks are transformers' own.

    Args:
        task: "question-answering", "token-classification" (or "ner"), or another one.
        model: a directory, a name of the Hub, or a model, whose tokenizer is then given, too.
        kwargs: of `transformers.pipeline`.
    """
    if kind := _CLASSES.get(task):
        kwargs["pipeline_class"] = kind
    make: Any = transformers.pipeline  # its overloads know no name that is a variable
    return make(task, model=model, **kwargs)


# transformers 5 refuses the name of the pipeline that it has dropped; here is one of that name.
getattr(transformers.pipelines, "REMOVED_TASKS", {}).pop("question-answering", None)
if "question-answering" not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        "question-answering",
        pipeline_class=QuestionAnsweringPipeline,
        pt_model=AutoModelForQuestionAnswering,
        type="text",
    )
