"""Shared by the tests of linear_cross_entropy: inputs, and PyTorch's loss of groups."""

import torch
from torch.nn import functional as F


def make(group_sizes, hidden_size, vocab_size, dtype):
    rows = sum(group_sizes)
    hidden = torch.randn(rows, hidden_size).to(dtype)
    # scores of about +-8: some rows are sure of the right entry, some of a wrong one
    weight = (8 * hidden_size**-0.5 * torch.randn(vocab_size, hidden_size)).to(dtype)
    bias = torch.randn(len(group_sizes), vocab_size).to(dtype)
    targets = torch.randint(vocab_size, (rows,))
    likely = torch.arange(rows) % 3 == 0
    scores = hidden.float() @ weight.float().t()
    targets[likely] = scores[likely].argmax(1) if likely.any() else targets[likely]
    return hidden, weight, bias, targets


def run(function, tensors, dlosses, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    losses = function(*leaves)
    return losses, *torch.autograd.grad(losses, leaves, dlosses.to(losses.dtype))


def peer(group_sizes, targets):
    """PyTorch's loss, with all scores of each group in memory."""

    def function(hidden, weight, bias):
        parts = zip(hidden.split(group_sizes), targets.split(group_sizes), bias, strict=True)
        losses = [F.cross_entropy(F.linear(h, weight, b), t, reduction="none") for h, t, b in parts]
        return torch.cat(losses)

    return function
