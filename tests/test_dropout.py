"""The dropout masks of contract C4 against the rule, applied element by element."""

import pytest
import torch

from spanbert_fast.ops.dropout import Dropout, DropoutPlan, flat_dropout
from spanbert_fast.reference.dropout import (
    attention_keep_mask,
    dropout_scale,
    dropout_threshold,
    hidden_keep_mask,
)
from spanbert_fast.reference.philox import philox4x32, split_key

SEED = 0x1234_5678_9ABC_DEF0


def attention_byte(site: int, sequence: int, head: int, i: int, j: int) -> int:
    def words(call):
        counter = (
            8 * (i // 16) + i % 8,
            2 * (4 * (j // 64) + (j % 8) // 2) + call,
            site << 16 | head,
            sequence,
        )
        return philox4x32(counter, split_key(SEED), rounds=7)

    first, second = words(0), words(1)
    sources = {7: first[0], 6: first[1], 5: first[2], 0: first[3]}
    sources |= {4: second[0], 3: second[1], 2: second[2], 1: second[3]}
    position = 8 * (2 * ((i // 8) % 2) + j % 2) + 7 - (j % 64) // 8
    return sum((word >> position & 1) << bit for bit, word in sources.items())


@pytest.mark.parametrize("seqlen", [1, 17, 70])
@pytest.mark.parametrize("threshold", [1, 26, 77, 128, 255])
def test_attention_mask_is_the_byte_rule(seqlen, threshold):
    dropout = Dropout(threshold / 256, torch.tensor(SEED), 3)
    mask = attention_keep_mask(dropout, torch.tensor([2, 5]), num_heads=2, seqlen=seqlen)
    assert mask.shape == (2, 2, seqlen, seqlen)
    for b, sequence in enumerate((2, 5)):
        for i in range(0, seqlen, 5):
            for j in range(seqlen):
                byte = attention_byte(3, sequence, 1, i, j)
                assert mask[b, 1, i, j].item() == (byte >= threshold), (sequence, i, j)


@pytest.mark.parametrize("hidden_size", [1, 6, 100, 256, 768])
def test_hidden_mask_is_the_byte_rule(hidden_size):
    # the last one needs call numbers beyond 32 bits at width 768
    rows = torch.tensor([0, 3, 1, 700_000_000])
    dropout = Dropout(77 / 256, torch.tensor(SEED), 4, rows)
    mask = hidden_keep_mask(dropout, 4, hidden_size, torch.device("cpu"))
    assert mask.shape == (4, hidden_size)
    for r, row in enumerate(rows.tolist()):
        for column in range(0, hidden_size, 3):
            e = row * hidden_size + column
            call = 16 * (e // 256) + (e % 64) // 4
            counter = (call & 0xFFFFFFFF, call >> 32, 4 << 16 | 0xFFFF, 0)
            word = philox4x32(counter, split_key(SEED), rounds=7)[(e % 256) // 64]
            byte = word >> 8 * (e % 4) & 0xFF
            assert mask[r, column].item() == (byte >= 77), (row, column)


def test_masks_have_the_stated_rate_and_differ_by_site_and_seed():
    masks = [
        hidden_keep_mask(Dropout(0.1, torch.tensor(seed), site), 512, 256, torch.device("cpu"))
        for seed, site in ((1, 0), (1, 1), (2, 0), (-1, 0))
    ]
    for mask in masks:
        # 131,072 bytes: the standard error of the rate is 0.0008
        assert abs(mask.double().mean().item() - 230 / 256) < 0.004
    for i in range(4):
        for j in range(i):
            # two independent masks agree if both keep or both drop
            agreement = (masks[i] == masks[j]).double().mean().item()
            assert abs(agreement - ((230 / 256) ** 2 + (26 / 256) ** 2)) < 0.006

    mask = attention_keep_mask(Dropout(0.1, torch.tensor(7)), torch.arange(4), 4, 128)
    assert abs(mask.double().mean().item() - 230 / 256) < 0.004
    assert (mask.double().mean((2, 3)) - 230 / 256).abs().max() < 0.015


def test_threshold_and_scale():
    assert dropout_threshold(0.0) == 0
    assert dropout_threshold(0.1) == 26
    assert dropout_threshold(0.5) == 128
    assert dropout_scale(26) == 256 / 230
    for p in (-0.1, 0.001, 0.999, 1.0):
        with pytest.raises(ValueError, match="dropout_p must be 0 or in"):
            dropout_threshold(p)


def test_a_plan_gives_every_place_its_site():
    plan, rows = DropoutPlan(torch.tensor(SEED)), torch.arange(3)
    assert plan.attention(2, 0.1) == Dropout(0.1, plan.seed, 2)
    assert plan.after_attention(2, 0.1, rows) == Dropout(0.1, plan.seed, 4, rows)
    assert plan.after_feed_forward(2, 0.1, rows) == Dropout(0.1, plan.seed, 5, rows)
    # the site after those of the last layer
    assert plan.embeddings(3, 0.1) == Dropout(0.1, plan.seed, 6)
    torch.manual_seed(5)
    drawn = DropoutPlan.draw(torch.device("cpu")).seed
    assert drawn.dtype == torch.int64 and drawn.dim() == 0
    assert drawn != DropoutPlan.draw(torch.device("cpu")).seed
    torch.manual_seed(5)
    assert drawn == DropoutPlan.draw(torch.device("cpu")).seed


def test_what_the_ops_refuse_and_what_they_need_not():
    x, seed = torch.zeros(2, 3), torch.tensor(SEED)
    assert flat_dropout(Dropout(0.1, seed, 3), x) == (seed, 26, 3)
    for nothing in (None, Dropout(0.0, None), Dropout(0.0, seed, 7)):
        assert flat_dropout(nothing, x) == (None, 0, 0)
    for seed, came in (
        (None, "None"),
        (5, "5"),
        (torch.tensor([1]), r"torch.int64 \(1,\)"),
        (torch.tensor(1.0), r"torch.float32 \(\)"),
    ):
        message = rf"dropout.seed must be a 0-dim int64 tensor, got {came}"
        with pytest.raises(ValueError, match=message):
            flat_dropout(Dropout(0.1, seed), x)
    seed = torch.tensor(SEED)
    # the site has 16 bits of the counter: a larger one would repeat a smaller one's mask
    for site in (-1, 65536):
        with pytest.raises(ValueError, match=rf"dropout.site must be in \[0, 65536\), got {site}"):
            flat_dropout(Dropout(0.1, seed, site), x)
    with pytest.raises(ValueError, match="dropout_p must be 0 or in .* got 0.999"):
        flat_dropout(Dropout(0.999, seed), x)
    with pytest.raises(ValueError, match="dropout.seed must be on meta as the input is, got cpu"):
        flat_dropout(Dropout(0.1, seed), x.to("meta"))
