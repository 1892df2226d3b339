"""transformers' pipelines, and `answer`, give the same with our models as with stock ones."""

import logging

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
    pipeline,
)

import spanbert_fast as sb
from spanbert_fast.errors import UsageError
from spanbert_fast.tasks.qa import answer

WORDS = "the a quick brown fox jumps over lazy dog in river of paris london runs sleeps . ,".split()
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ing"]
SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Paris",
    "a dog runs, a fox sleeps in the river of london ,",
    "foxs jumpsing",
]
LABELS = ["O", "B-LOC", "I-LOC", "B-PER"]
NAMED = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
PAIRS = {
    "text-classification": (sb.SpanBertForSequenceClassification, BertForSequenceClassification),
    "token-classification": (sb.SpanBertForTokenClassification, BertForTokenClassification),
    "zero-shot-classification": (
        sb.SpanBertForSequenceClassification,
        BertForSequenceClassification,
    ),
    "fill-mask": (sb.SpanBertForMaskedLM, BertForMaskedLM),
    "feature-extraction": (sb.SpanBertModel, BertModel),
    "question-answering": (sb.SpanBertForQuestionAnswering, BertForQuestionAnswering),
}


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(vocab={token: i for i, token in enumerate(TOKENS)}, do_lower_case=True)


def pair(task, **fields):
    """(ours, stock) with the same large weights."""
    ours_class, stock_class = PAIRS[task]
    torch.manual_seed(3)
    ours = ours_class(sb.SpanBertConfig(**SIZES, **fields)).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1
    stock = stock_class(BertConfig(**SIZES, **fields)).eval()
    stock.load_state_dict(ours.state_dict())
    return ours, stock


def assert_same(ours, stock):
    """The structure and the labels are equal; numbers differ by fp32 rounding at most."""
    assert type(ours) is type(stock)
    if isinstance(stock, dict):
        assert ours.keys() == stock.keys()
        for key, value in stock.items():
            assert_same(ours[key], value)
    elif isinstance(stock, (list, tuple)):
        assert len(ours) == len(stock)
        for one, other in zip(ours, stock, strict=True):
            assert_same(one, other)
    else:
        is_number = not isinstance(stock, (str, int, type(None)))
        assert ours == (pytest.approx(stock, rel=1e-4, abs=1e-4) if is_number else stock)


@pytest.fixture
def complaints():
    """The errors that transformers logs, such as for a model that a pipeline does not support."""
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    handler = Keep(logging.ERROR)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


CALLS = [
    ("text-classification", {"top_k": None}),
    ("token-classification", {}),
    ("token-classification", {"aggregation_strategy": "simple"}),
    ("token-classification", {"aggregation_strategy": "first"}),
    ("zero-shot-classification", {"candidate_labels": ["fox", "river"]}),
]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("task", "options"), CALLS, ids=[f"{t} {o}" for t, o in CALLS])
def test_a_pipeline_with_our_model_equals_stock(tokenizer, complaints, task, options, batch_size):
    fields = NAMED if "classification" in task else {}
    if task == "zero-shot-classification":
        names = ["contradiction", "neutral", "entailment"]
        fields = {
            "id2label": dict(enumerate(names)),
            "label2id": {n: i for i, n in enumerate(names)},
        }
    results = []
    for model in pair(task, **fields):
        pipe = pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
        results.append(pipe(TEXTS, batch_size=batch_size, **options))
    assert len(results[0]) == len(TEXTS)
    assert_same(*results)
    assert not complaints


@pytest.mark.parametrize("batch_size", [1, 3])
def test_feature_extraction(tokenizer, complaints, batch_size):
    """The rows of tokens are equal; in a batch the pipeline returns rows of padding, too."""
    results = []
    for model in pair("feature-extraction"):
        pipe = pipeline("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")
        rows = pipe(TEXTS, batch_size=batch_size)
        lengths = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
        results.append([r[0][:length] for r, length in zip(rows, lengths, strict=True)])
    assert_same(*results)
    assert not complaints


def test_fill_mask(tokenizer, complaints):
    results = []
    for model in pair("fill-mask"):
        pipe = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
        results.append(pipe(["the [MASK] fox", "a dog [MASK] over the [MASK]."], top_k=4))
    assert_same(*results)
    assert not complaints


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_pipeline_from_a_directory(tokenizer, complaints, tmp_path, task):
    """As after fine-tuning, the directory holds an ordinary BERT with its labels."""
    ours, stock = pair(task, **NAMED)
    ours.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pipe = pipeline(task, model=str(tmp_path), device="cpu")
    assert type(pipe.model) is type(stock)
    wanted = pipeline(task, model=stock, tokenizer=tokenizer, device="cpu")(TEXTS)
    assert_same(pipe(TEXTS), wanted)
    labels = {row["label" if "text" in task else "entity"] for row in flat(wanted)}
    assert labels <= set(LABELS)
    assert not complaints


def flat(rows):
    return [row for item in rows for row in (item if isinstance(item, list) else [item])]


# Question answering, for which transformers 5 has no pipeline

CONTEXT = " ".join(TEXTS) + " "
WINDOWS = {"max_query_length": 8, "doc_stride": 5}


@pytest.mark.parametrize("repeats", [1, 7])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_answer_with_our_model_equals_stock(tokenizer, repeats, batch_size):
    ours, stock = pair("question-answering")
    context = CONTEXT * repeats
    predictions = [
        answer(model.train(), tokenizer, "a fox?", context, batch_size=batch_size, **WINDOWS)
        for model in (ours, stock)
    ]
    assert ours.training and stock.training, "left as they were"
    one, other = predictions
    assert one.text == other.text
    assert one.text == context[one.nbest[0].start : one.nbest[0].end] != ""
    assert one.score == pytest.approx(other.score, rel=1e-4, abs=1e-4)
    assert one.null_odds == pytest.approx(other.null_odds, rel=1e-4, abs=1e-4)
    scores = [[a.score for a in prediction.nbest] for prediction in predictions]
    assert len(scores[0]) == 20
    assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-4)


def test_answer_of_one_window_by_hand(tokenizer):
    """The answer is the span of the context with the largest sum of its two logits."""
    model, _ = pair("question-answering")
    context = TEXTS[0]
    inputs = tokenizer("the dog?", context, return_offsets_mapping=True, return_tensors="pt")
    offsets = inputs.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        output = model(**inputs)
    start, end = output.start_logits[0].tolist(), output.end_logits[0].tolist()
    places = [i for i, kind in enumerate(inputs["token_type_ids"][0].tolist()) if kind][:-1]
    spans = [(start[i] + end[j], i, j) for i in places for j in places if i <= j < i + 4]
    score, first, last = max(spans)
    found = answer(model, tokenizer, "the dog?", context, max_answer_length=4, max_query_length=8)
    assert found.text == context[offsets[first][0] : offsets[last][1]]
    assert found.score == pytest.approx(score, abs=1e-4)
    assert found.null_odds == pytest.approx(start[0] + end[0] - score, abs=1e-4)


def test_answer_from_a_directory(tokenizer, tmp_path):
    ours, _ = pair("question-answering")
    ours.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert type(model) is BertForQuestionAnswering
    again = answer(model, AutoTokenizer.from_pretrained(tmp_path), "fox?", CONTEXT, **WINDOWS)
    assert again.text == answer(ours, tokenizer, "fox?", CONTEXT, **WINDOWS).text


def test_answer_refuses_what_it_cannot_read(tokenizer):
    model, _ = pair("question-answering")
    with pytest.raises(ValueError, match=r"context must not be blank, got ' \\n'"):
        answer(model, tokenizer, "fox?", " \n", **WINDOWS)
    with pytest.raises(UsageError, match="--max-query-length"):
        answer(model, tokenizer, "fox?", "a fox", max_query_length=37)
    with pytest.raises(TypeError, match="stride"):
        answer(model, tokenizer, "fox?", "a fox", stride=3)
