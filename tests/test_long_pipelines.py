"""Pipelines over texts that are longer than the model reads."""

import pytest
import torch
from transformers import BertTokenizer, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from bert_cases import SIZES, large_init
from spanbert_fast import pipelines
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models import SpanBertForQuestionAnswering, SpanBertForTokenClassification
from spanbert_fast.tasks.qa import answer

WORDS = "the a quick fox dog runs jumps over lazy in Oslo Paris . , ?".split()
TEXT = "The quick fox runs over the lazy dog in Oslo, the fox jumps in Paris. ".lower() * 9
LABELS = ["O", "B-LOC", "I-LOC"]
WINDOWS = {"max_query_length": 8, "doc_stride": 5}


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str.lower, WORDS)]
    return BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})


def model_of(kind, **fields):
    torch.manual_seed(0)
    return large_init(kind(SpanBertConfig(**SIZES, **fields)))


def test_questions_as_transformers_4_took_them(tokenizer, tmp_path):
    model = model_of(SpanBertForQuestionAnswering)
    wanted = answer(model, tokenizer, "a fox?", TEXT, **WINDOWS)
    reader = pipeline("question-answering", model=model, tokenizer=tokenizer, device="cpu")
    assert isinstance(reader, pipelines.QuestionAnsweringPipeline)
    found = reader(question="a fox?", context=TEXT, **WINDOWS)
    assert found["answer"] == wanted.text == TEXT[found["start"] : found["end"]]
    assert found["score"] == pytest.approx(wanted.rows(False)[0]["probability"])
    inputs = [{"question": q, "context": TEXT} for q in ("a fox?", "the dog?")]
    many = reader(inputs, **WINDOWS)
    assert many[0]["answer"] == found["answer"] and len(many) == 2
    same = reader(question=["a fox?", "the dog?"], context=TEXT, **WINDOWS)
    assert [row["answer"] for row in same] == [row["answer"] for row in many]
    three = reader({"question": "a fox?", "context": TEXT}, top_k=3, **WINDOWS)
    assert [row["score"] for row in three] == sorted((r["score"] for r in three), reverse=True)
    assert len(three) == 3 and three[0] == found
    empty = reader(inputs[0], top_k=100, handle_impossible_answer=True, **WINDOWS)
    assert "" in [row["answer"] for row in empty]
    with pytest.raises(ValueError, match="question and context must not be blank, got 'a', ' '"):
        reader(question="a", context=" ")
    # from a directory the pipeline loads transformers' BERT, with the fast parts in place
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = pipelines.pipeline("question-answering", str(tmp_path), device="cpu")
    assert again(question="a fox?", context=TEXT, **WINDOWS)["answer"] == found["answer"]
    assert "question-answering" in PIPELINE_REGISTRY.get_supported_tasks()


def test_entities_of_whole_documents(tokenizer):
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    model = model_of(SpanBertForTokenClassification, **names)
    model.classifier.bias.data[0] = -1e3  # so that every word is in an entity
    limit = model.config.max_position_embeddings
    assert len(tokenizer(TEXT).input_ids) > 3 * limit
    reader = pipelines.pipeline("ner", model, tokenizer=tokenizer, device="cpu")
    found = reader(TEXT)
    assert found and found[-1]["start"] > len(TEXT) // 2, "the end of the document was read, too"
    for row in found:
        assert row["entity_group"] == "LOC" and 0 < row["score"] <= 1
        assert row["word"] == TEXT[row["start"] : row["end"]].strip()
    short = "a fox in oslo ."
    for rows, alone in zip(reader([short, "", TEXT]), [reader(short), [], found], strict=True):
        # the rounding of matrix products depends on their number of rows
        assert rows == [{**row, "score": pytest.approx(row["score"], rel=1e-4)} for row in alone]
    # a text that fits into one window gives the stock pipeline's result
    stock = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
    tags = {row["word"]: row["entity"] for row in stock(short)}
    begun = {row["word"].split()[0] for row in reader(short)}
    assert begun <= tags.keys()
