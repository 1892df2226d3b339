"""The dropout masks of contract C4 against the rule read out element by element."""

import pytest
import torch

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
    mask = attention_keep_mask(
        torch.tensor(SEED), 3, torch.tensor([2, 5]), num_heads=2, seqlen=seqlen, threshold=threshold
    )
    assert mask.shape == (2, 2, seqlen, seqlen)
    for b, sequence in enumerate((2, 5)):
        for i in range(0, seqlen, 5):
            for j in range(seqlen):
                byte = attention_byte(3, sequence, 1, i, j)
                assert mask[b, 1, i, j].item() == (byte >= threshold), (sequence, i, j)


@pytest.mark.parametrize("hidden_size", [1, 6, 100, 256, 768])
def test_hidden_mask_is_the_byte_rule(hidden_size):
    rows = torch.tensor([0, 3, 1, 700_000_000])  # the last: call numbers beyond 32 bits at 768
    mask = hidden_keep_mask(torch.tensor(SEED), 4, rows, hidden_size, threshold=77)
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
    rows = torch.arange(512)
    masks = [
        hidden_keep_mask(torch.tensor(seed), site, rows, 256, threshold=26)
        for seed, site in ((1, 0), (1, 1), (2, 0), (-1, 0))
    ]
    for mask in masks:
        # 131,072 bytes: the standard error of the rate is 0.0008
        assert abs(mask.double().mean().item() - 230 / 256) < 0.004
    for i in range(4):
        for j in range(i):
            # independent masks agree where both keep or both drop
            agreement = (masks[i] == masks[j]).double().mean().item()
            assert abs(agreement - ((230 / 256) ** 2 + (26 / 256) ** 2)) < 0.006

    mask = attention_keep_mask(torch.tensor(7), 0, torch.arange(4), 4, 128, threshold=26)
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
