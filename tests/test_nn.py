"""A small SpanBERT from spanbert_fast.nn alone, against torch.nn.TransformerEncoderLayer."""

import torch
from torch import nn
from torch.nn import functional as F

from spanbert_fast.nn import (
    MaskedLMHead,
    NormOptions,
    Packing,
    SpanBoundaryHead,
    SpanPretrainingLoss,
    SpanTargets,
    TransformerLayer,
)
from spanbert_fast.ops.dropout import DropoutPlan
from spanbert_fast.testing import assert_bitwise_equal

HIDDEN, HEADS, INNER, VOCAB, LAYERS = 32, 4, 64, 70, 2
LENGTHS = [13, 1, 20, 7]
SEED = torch.tensor(987654321)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def cumulative(lengths):
    return F.pad(torch.tensor(lengths).long().cumsum(0), (1, 0)).to(torch.int32)


def padding_mask(lengths, seqlen):
    return (torch.arange(seqlen) < torch.tensor(lengths)[:, None]).long()


def draw_large(module, std=0.3):
    """At BERT's own 0.02 a wrong softmax scale would move the output by 2e-5 only."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module


class SmallSpanBert(nn.Module):
    """What a reader of spanbert_fast.nn would write."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.words = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(
            TransformerLayer(
                HIDDEN,
                HEADS,
                INNER,
                attention_dropout=dropout,
                norm=NormOptions(dropout),
                layer_index=index,
            )
            for index in range(LAYERS)
        )
        mlm_head = MaskedLMHead(HIDDEN, VOCAB)
        mlm_head.decoder.weight = self.words.weight
        self.loss = SpanPretrainingLoss(mlm_head, SpanBoundaryHead(HIDDEN, VOCAB, 5, 6))

    def encode(self, input_ids, **layout):
        x = self.words(input_ids)
        for layer in self.layers:
            x = layer(x, **layout)
        return x

    def forward(self, input_ids, targets, **layout):
        return self.loss(self.encode(input_ids, **layout), self.words.weight, targets)


class PlainSpanBert(nn.Module):
    """The same model out of torch.nn alone: padded, all places, all scores. Shares no code."""

    def __init__(self, ours: SmallSpanBert):
        super().__init__()
        self.words = nn.Parameter(ours.words.weight.detach().clone())
        self.layers = nn.ModuleList()
        for layer in ours.layers:
            attention = layer.attention.self
            parts = (attention.query, attention.key, attention.value)
            plain = nn.TransformerEncoderLayer(
                HIDDEN, HEADS, INNER, 0.0, "gelu", 1e-12, batch_first=True, dtype=torch.float64
            )
            state = {
                "self_attn.in_proj_weight": torch.cat([p.weight for p in parts]),
                "self_attn.in_proj_bias": torch.cat([p.bias for p in parts]),
            }
            for theirs, module in (
                ("self_attn.out_proj", layer.attention.output.dense),
                ("norm1", layer.attention.output.LayerNorm),
                ("linear1", layer.intermediate.dense),
                ("linear2", layer.output.dense),
                ("norm2", layer.output.LayerNorm),
            ):
                state |= {f"{theirs}.{n}": p for n, p in module.named_parameters()}
            plain.load_state_dict(state)
            self.layers.append(plain)
        self.heads = nn.ParameterDict(
            {
                name.replace(".", "_"): nn.Parameter(p.detach().clone())
                for name, p in ours.loss.named_parameters()
                if not name.endswith("decoder.weight")
            }
        )

    def encode(self, input_ids, attention_mask):
        x = self.words[input_ids]
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=attention_mask == 0)
        return x

    def block(self, x, linear, norm):
        x = F.gelu(F.linear(x, self.heads[linear + "_weight"], self.heads[linear + "_bias"]))
        scale, shift = self.heads[norm + "_weight"], self.heads[norm + "_bias"]
        return F.layer_norm(x, (HIDDEN,), scale, shift, 1e-12)

    def forward(self, input_ids, targets, attention_mask):
        x = self.encode(input_ids, attention_mask).flatten(0, 1)
        transform = "predictions_transform_"
        h = self.block(x[targets.mlm_positions], transform + "dense", transform + "LayerNorm")
        mlm = F.cross_entropy(
            h @ self.words.t() + self.heads["predictions_bias"], targets.mlm_targets
        )
        rows = []
        lengths = targets.cu_span_lengths.diff().tolist()
        for (left, right), length in zip(targets.span_boundaries, lengths, strict=True):
            for k in range(length):
                place = self.heads["span_boundary_position_embeddings_weight"][k]
                rows.append(torch.cat([x[left], x[right], place]))
        h = self.block(torch.stack(rows), "span_boundary_linear1", "span_boundary_layer_norm1")
        h = self.block(h, "span_boundary_linear2", "span_boundary_layer_norm2")
        sbo = F.cross_entropy(
            h @ self.words.t() + self.heads["span_boundary_bias"], targets.sbo_targets
        )
        return mlm + sbo

    def gradients_like(self, ours: SmallSpanBert) -> dict[str, torch.Tensor]:
        """This model's gradients under the names of ours."""
        found = {"words.weight": self.words.grad}
        for index, plain in enumerate(self.layers):
            grads = {n: p.grad for n, p in plain.named_parameters()}
            for part, weight, bias in zip(
                ("query", "key", "value"),
                grads["self_attn.in_proj_weight"].chunk(3),
                grads["self_attn.in_proj_bias"].chunk(3),
                strict=True,
            ):
                found[f"layers.{index}.attention.self.{part}.weight"] = weight
                found[f"layers.{index}.attention.self.{part}.bias"] = bias
            for theirs, name in (
                ("self_attn.out_proj", "attention.output.dense"),
                ("norm1", "attention.output.LayerNorm"),
                ("linear1", "intermediate.dense"),
                ("linear2", "output.dense"),
                ("norm2", "output.LayerNorm"),
            ):
                for kind in ("weight", "bias"):
                    found[f"layers.{index}.{name}.{kind}"] = grads[f"{theirs}.{kind}"]
        for name, _ in ours.loss.named_parameters():
            if not name.endswith("decoder.weight"):
                found["loss." + name] = self.heads[name.replace(".", "_")].grad
        return found


def make_batch():
    """A padded batch with its mask, the same batch packed, and targets for each of the two."""
    seqlen = max(LENGTHS) + 2
    mask = padding_mask(LENGTHS, seqlen)
    padded_ids = torch.randint(VOCAB, mask.shape)
    flat = mask.flatten().nonzero().squeeze(1)  # packed row -> padded row
    spans = [(0, 4), (4, 7), (15, 21), (33, 38)]  # boundaries in packed rows
    inside = torch.cat([torch.arange(left + 1, right) for left, right in spans])
    ids = padded_ids.flatten()[flat]
    packed = SpanTargets(
        mlm_positions=inside,
        mlm_targets=ids[inside],
        span_boundaries=torch.tensor(spans),
        cu_span_lengths=cumulative([right - left - 1 for left, right in spans]),
        sbo_targets=ids[inside],
    )
    padded = packed._replace(
        mlm_positions=flat[packed.mlm_positions], span_boundaries=flat[packed.span_boundaries]
    )
    return padded_ids, mask, padded, ids, packed


def test_forward_and_gradients_equal_plain_torch_packed_and_padded():
    ours = draw_large(SmallSpanBert().double())
    plain = PlainSpanBert(ours)
    padded_ids, mask, padded, ids, packed = make_batch()
    expected = plain(padded_ids, padded, mask)
    expected.backward()
    truth = plain.gradients_like(ours)
    for result in (
        ours(ids, packed, cu_seqlens=cumulative(LENGTHS)),
        ours(padded_ids, padded, attention_mask=mask),
    ):
        torch.testing.assert_close(result.loss, expected.detach(), **CLOSE)
        ours.zero_grad()
        result.loss.backward()
        grads = {name: p.grad for name, p in ours.named_parameters()}
        assert grads.keys() == truth.keys()
        torch.testing.assert_close(grads, truth, **CLOSE)


def test_hidden_states_equal_plain_torch_and_padding_is_zero():
    ours = draw_large(SmallSpanBert().double())
    padded_ids, mask, _, ids, _ = make_batch()
    real = mask.bool()
    with torch.no_grad():
        expected = PlainSpanBert(ours).train().encode(padded_ids, mask)
        padded = ours.encode(padded_ids, attention_mask=mask)
        packed = ours.encode(ids, cu_seqlens=cumulative(LENGTHS))
        unmasked = ours.encode(padded_ids[:, :9])
        cut = ours.encode(padded_ids[:, :9], attention_mask=torch.ones(4, 9))
    torch.testing.assert_close(padded[real], expected[real], **CLOSE)
    assert_bitwise_equal(padded[real], packed)
    assert not padded[~real].any()
    assert_bitwise_equal(unmasked, cut)


def test_a_few_steps_of_training_follow_plain_torch():
    ours = draw_large(SmallSpanBert().double(), std=0.1)
    plain = PlainSpanBert(ours)
    padded_ids, mask, padded, ids, packed = make_batch()
    mine = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    history = []
    for _ in range(15):
        for optimizer in (mine, theirs):
            optimizer.zero_grad()
        loss = ours(ids, packed, cu_seqlens=cumulative(LENGTHS)).loss
        expected = plain(padded_ids, padded, mask)
        torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)
        loss.backward()
        expected.backward()
        mine.step()
        theirs.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


def test_compile_without_a_break():
    model = draw_large(SmallSpanBert(dropout=0.1).double(), std=0.1)
    _, _, _, ids, packed = make_batch()
    cu_seqlens = cumulative(LENGTHS)

    def step(ids, targets, cu_seqlens):
        x = model.words(ids)
        for layer in model.layers:
            x = layer(x, Packing.of_packed(cu_seqlens, 20, len(x)), plan=DropoutPlan(SEED))
        return model.loss(x, model.words.weight, targets).loss

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(ids, packed, cu_seqlens), step(ids, packed, cu_seqlens), **CLOSE
    )
