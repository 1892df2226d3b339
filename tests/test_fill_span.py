"""FillSpan finds the exact best fillings of runs of masks; and the usual snippets run."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertTokenizer,
    pipeline,
)

import spanbert_fast as sb
from bert_cases import large_init
from spanbert_fast.fill_span import FillSpan

WORDS = "the quick brown fox jumps over a lazy dog . , and runs".split()
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ing", "##ed"]
WORD_IDS = range(5, len(TOKENS))
ROWS = len(TOKENS) + 3


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(vocab={token: i for i, token in enumerate(TOKENS)}, do_lower_case=True)


def make(model_class=sb.SpanBertForPreTraining, vocab_size=ROWS):
    """A model with large weights, and with three rows more than the tokenizer has tokens."""
    config = sb.SpanBertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
        max_span_targets=3,
        span_position_embedding_size=6,
    )
    torch.manual_seed(5)
    return large_init(model_class(config))


@pytest.fixture(scope="module")
def model():
    return make()


@torch.no_grad()
def log_probabilities(model, ids, head):
    """{place: log-probabilities} by the definition: one sequence, every position, no packing."""
    ids = torch.tensor([ids])
    mlm = model(ids).logits[0].log_softmax(-1)
    masked = [place for place, token in enumerate(ids[0].tolist()) if token == 4]
    if head == "mlm":
        return {place: mlm[place] for place in masked}
    hidden, span = model.bert(ids).last_hidden_state[0], model.cls.span_boundary
    found = {}
    for place in masked:
        first, last = place, place
        while first - 1 in masked:
            first -= 1
        while last + 1 in masked:
            last += 1
        edge = first == 1 or last == ids.shape[1] - 2
        if edge or place - first >= 3:
            assert head == "both"
            found[place] = mlm[place]
            continue
        p = span.position_embeddings.weight[place - first]
        x = torch.cat([hidden[first - 1], hidden[last + 1], p])
        x = span.layer_norm1(F.gelu(span.linear1(x)))
        x = span.layer_norm2(F.gelu(span.linear2(x)))
        sbo = (model.cls.predictions.decoder.weight @ x + span.bias).log_softmax(-1)
        found[place] = sbo if head == "sbo" else (mlm[place] + sbo).log_softmax(-1)
    return found


TEXTS = [
    "the [MASK] [MASK] fox jumps",
    "a [MASK] dog and [MASK] [MASK] [MASK] runs .",
    "the quick [MASK] fox",
]


@pytest.mark.parametrize("head", ["mlm", "sbo", "both"])
def test_exact_best_of_the_product(model, tokenizer, head):
    """The best fillings equal those found by trying every combination."""
    for text in TEXTS[:1] + TEXTS[2:]:
        log_p = log_probabilities(model, tokenizer(text)["input_ids"], head)
        every = itertools.product(WORD_IDS, repeat=len(log_p))
        score = {c: sum(float(p[t]) for p, t in zip(log_p.values(), c, strict=True)) for c in every}
        best = sorted(score, key=score.get, reverse=True)[:7]
        fillings = FillSpan(model, tokenizer)(text, head=head, top_k=7)
        assert [filling.spans[0].token_ids for filling in fillings] == best
        for filling, combination in zip(fillings, best, strict=True):
            assert filling.score == pytest.approx(score[combination], abs=1e-4)
            assert sum(filling.spans[0].log_probabilities) == pytest.approx(filling.score, abs=1e-5)


@pytest.mark.parametrize("head", ["mlm", "sbo", "both"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_equal_single_texts(model, tokenizer, head, batch_size):
    fill = FillSpan(model, tokenizer)
    together = fill(TEXTS, head=head, batch_size=batch_size)
    for text, fillings in zip(TEXTS, together, strict=True):
        alone = fill(text, head=head)
        assert [f.text for f in alone] == [f.text for f in fillings]
        assert [f.score for f in alone] == pytest.approx([f.score for f in fillings], abs=1e-4)


def test_several_runs_are_filled_jointly(model, tokenizer):
    text = TEXTS[1]
    log_p = log_probabilities(model, tokenizer(text)["input_ids"], "both")
    filling = FillSpan(model, tokenizer)(text, head="both", top_k=1)[0]
    best = [int(p[5 : len(TOKENS)].argmax()) + 5 for p in log_p.values()]
    assert [len(span.token_ids) for span in filling.spans] == [1, 3]
    assert [t for span in filling.spans for t in span.token_ids] == best
    assert filling.score == pytest.approx(
        sum(float(p[t]) for p, t in zip(log_p.values(), best, strict=True)), abs=1e-4
    )


def test_where_the_span_boundary_head_has_no_prediction(model, tokenizer):
    """At an edge, and at places from max_span_targets = 3 on, "both" is the masked LM alone."""
    fill = FillSpan(model, tokenizer)
    for text, run in (
        ("[MASK] quick fox", 1),
        ("the quick [MASK] [MASK]", 2),
        ("the [MASK] [MASK] [MASK] [MASK] fox", 4),
    ):
        log_p = log_probabilities(model, tokenizer(text)["input_ids"], "both")
        got = fill(text, head="both", top_k=1)[0].spans[0]
        expected = [float(p[t]) for p, t in zip(log_p.values(), got.token_ids, strict=True)]
        assert list(got.log_probabilities) == pytest.approx(expected, abs=1e-4)
        with pytest.raises(ValueError, match=f'head must be "mlm" or "both".* a run of {run}'):
            fill(text, head="sbo")


@pytest.mark.parametrize("head", ["mlm", "sbo", "both"])
def test_iterative_fills_the_surest_place_first(model, tokenizer, head):
    """With one hypothesis: greedy decoding, written out."""
    text = TEXTS[1]
    ids, total = tokenizer(text)["input_ids"], 0.0
    while 4 in ids:
        log_p = log_probabilities(model, ids, head)
        allowed = {place: p[5 : len(TOKENS)] for place, p in log_p.items()}
        place = max(allowed, key=lambda at: float(allowed[at].max()))
        total += float(allowed[place].max())
        ids[place] = int(allowed[place].argmax()) + 5
    fill = FillSpan(model, tokenizer)
    filling = fill(text, head=head, top_k=1, iterative=True)[0]
    assert [t for span in filling.spans for t in span.token_ids] == [ids[2], *ids[5:8]]
    assert filling.score == pytest.approx(total, abs=1e-4)
    several = fill(TEXTS, head=head, top_k=4, iterative=True)
    for fillings in several:
        scores = [f.score for f in fillings]
        assert len({f.text for f in fillings}) == 4 and scores == sorted(scores, reverse=True)
    # a single mask gives the same in both modes
    assert [f.text for f in several[2]] == [f.text for f in fill(TEXTS[2], head=head, top_k=4)]


def test_text_outside_the_masks_stays_as_it_came(model, tokenizer):
    text = "The   QUICK [MASK] [MASK],fox's  [MASK]"
    for filling in FillSpan(model, tokenizer)(text, top_k=20):
        first, second = (span.text for span in filling.spans)
        gap = "" if first.startswith("##") else " "
        end = "" if second.startswith("##") else "  "
        wanted = f"The   QUICK{gap}{first.removeprefix('##')},fox's{end}{second.removeprefix('##')}"
        assert filling.text == wanted
        assert len(filling.spans[0].tokens) == 2


def test_a_word_piece_continues_the_word_before_it(model, tokenizer):
    fillings = FillSpan(model, tokenizer)("the fox jump [MASK] over", top_k=16)
    assert len(fillings) == len(TOKENS) - 5  # never special tokens, nor rows without a token
    by_token = {filling.spans[0].tokens[0]: filling.text for filling in fillings}
    assert by_token["##s"] == "the fox jumps over"
    assert by_token["dog"] == "the fox jump dog over"


def test_a_row_without_a_token_is_never_filled_in(model):
    vocab = {token: i for i, token in enumerate(TOKENS)}
    vocab["##ed"] += 2  # two rows of the vocabulary have no token
    fill = FillSpan(model, BertTokenizer(vocab=vocab, do_lower_case=True))
    found = fill("the [MASK] fox", top_k=100)
    assert {filling.spans[0].token_ids[0] for filling in found} == {*WORD_IDS} - {
        len(TOKENS) - 1
    } | {len(TOKENS) + 1}


def test_masked_lm_alone_and_train_mode(model, tokenizer):
    bare = make(sb.SpanBertForMaskedLM).train()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if "span_boundary" not in k})
    got = FillSpan(bare, tokenizer)(TEXTS)
    assert bare.training, "left as it was"
    expected = FillSpan(model, tokenizer)(TEXTS)
    assert [f.text for found in got for f in found] == [f.text for found in expected for f in found]
    for head in ("sbo", "both"):
        with pytest.raises(ValueError, match=f"SpanBertForMaskedLM, .* got '{head}'"):
            FillSpan(bare, tokenizer)(TEXTS, head=head)


def test_scores_that_are_no_numbers_are_an_error(tokenizer):
    bare = make(sb.SpanBertForMaskedLM)
    with torch.no_grad():
        bare.cls.predictions.bias[7] = float("nan")
    with pytest.raises(FloatingPointError, match="the model's scores are not finite"):
        FillSpan(bare, tokenizer)(TEXTS[0])


def test_bad_input(model, tokenizer):
    fill = FillSpan(model, tokenizer)
    assert fill([]) == []
    for arguments, message in (
        ({"texts": ["[MASK]", "no"]}, r"texts\[1\] must hold the mask token \[MASK\], got 'no'"),
        ({"texts": TEXTS, "head": "nsp"}, "head must be one of mlm, sbo, both, got 'nsp'"),
        ({"texts": TEXTS, "top_k": 0}, "top_k must be at least 1, got 0"),
        ({"texts": TEXTS, "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"texts": "[MASK] " * 40}, "longer than max_position_embeddings = 32, got 42"),
    ):
        with pytest.raises(ValueError, match=message):
            fill(**arguments)
    with pytest.raises(TypeError, match="model must be a SpanBertForPreTraining .* SpanBertModel"):
        FillSpan(model.bert, tokenizer)
    small = make(vocab_size=10)
    with pytest.raises(ValueError, match="must not have more tokens .* = 10, got 21"):
        FillSpan(small, tokenizer)


# Snippets that everybody runs first


@pytest.fixture(scope="module")
def directory(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_usual_snippet(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = sb.SpanBertForMaskedLM.from_pretrained(directory)

    inputs = tokenizer("The quick brown [MASK] jumps.", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    place = (inputs.input_ids == tokenizer.mask_token_id).nonzero()[0, 1]
    top5 = tokenizer.convert_ids_to_tokens(logits[0, place].topk(5).indices.tolist())

    from_auto = AutoModelForMaskedLM.from_pretrained(directory)
    assert type(from_auto) is BertForMaskedLM
    assert torch.allclose(from_auto(**inputs).logits, logits, rtol=1e-4, atol=1e-4)
    assert len(set(top5)) == 5


def test_fill_mask_pipeline(directory, model, tokenizer):
    bare = sb.SpanBertForMaskedLM.from_pretrained(directory)
    fill_mask = pipeline("fill-mask", model=bare, tokenizer=tokenizer)
    text = "the quick [MASK] fox"
    answers = fill_mask(text, top_k=5)
    ours = {f.spans[0].token_ids[0]: f.score for f in FillSpan(model, tokenizer)(text, top_k=16)}
    shared = [a for a in answers if a["token"] in ours]  # the pipeline may offer special tokens
    assert shared
    for answer in shared:
        assert answer["score"] == pytest.approx(math.exp(ours[answer["token"]]), rel=1e-3)
    # several masks, several texts, padded to one batch
    batch = fill_mask(TEXTS[::2], batch_size=2)
    assert len(batch) == 2 and len(batch[0]) == 2


def test_importing_the_package_is_light():
    """Importing the ops alone does not load transformers."""
    code = (
        "import sys, spanbert_fast as sb; sb.use_backend;"
        "assert 'transformers' not in sys.modules;"
        "assert set(sb.__all__) <= set(dir(sb)) and sb.__version__"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sb.nothing  # noqa: B018
