"""Shared by the tests of accelerated classes: trios with fp64 truth, padded batches."""

import torch
from transformers import BertConfig
from transformers.masking_utils import create_bidirectional_mask

from bert_cases import SIZES, large_init

LENGTHS = (19, 1, 7, 18)


def config(**fields):
    return BertConfig(**{**SIZES, **fields}, attn_implementation="eager")


def trio(ours_class, theirs_class, *args, **fields):
    """(ours, theirs, theirs in fp64) with the same large weights."""
    ours = large_init(ours_class(config(**fields), *args))
    theirs, truth = (theirs_class(config(**fields), *args).eval() for _ in range(2))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for model in (theirs, truth):
        model.load_state_dict(ours.state_dict())
    return ours, theirs, truth.double()


def mask_of(lengths, seqlen):
    return (torch.arange(seqlen) < torch.tensor(lengths)[:, None]).long()


def padded_batch():
    mask = mask_of(LENGTHS, 19)
    return torch.randint(1, 97, (4, 19)) * mask, mask


def four_dimensional(mask):
    return create_bidirectional_mask(config(), torch.zeros(*mask.shape, 64), mask)
