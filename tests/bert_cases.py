"""What the tests of BERT models share: sizes, large weights, floors of comparisons.

At the default standard deviation of 0.02 real faults hide: a wrong softmax scale moves the output
by 2e-5. Here every weight, bias included, has 0.3, and norms are random around 1.
"""

import re

import torch

from spanbert_fast.testing import assert_no_worse_than

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 100,
    "max_position_embeddings": 40,
}


def large_init(model):
    """Every parameter normal with std 0.3; norm weights around 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1
    return model.eval()


def floor_of(truth):
    """64 roundings of the largest element: the peer's error is a sum of some hundred roundings,
    and may come out small in one small tensor by luck."""
    return 64 * torch.finfo(torch.float32).eps * truth.abs().max().item()


def gradient_floor(parameters, name):
    """As `floor_of`. A key's bias has no gradient (softmax ignores it), nor have queries and keys
    in sequences of length 1: what comes out is the rounding of sums as large as those beside."""
    beside = name, name.replace("key.bias", "key.weight"), re.sub("query|key", "value", name)
    return max(floor_of(parameters[other].grad) for other in beside)


def assert_same_gradients(*parameters):
    """Gradients of (ours, theirs, truth), each given as its named_parameters, within C5."""
    ours, theirs, truth = (dict(named) for named in parameters)
    for name, parameter in truth.items():
        if parameter.grad is None:
            assert ours[name].grad is None or not ours[name].grad.any(), name
            continue
        grads = ours[name].grad, theirs[name].grad, parameter.grad
        assert_no_worse_than(*grads, floor=gradient_floor(truth, name), name=name)


def widened(inputs):
    def is_real(value):
        return torch.is_tensor(value) and value.is_floating_point()

    return {k: v.double() if is_real(v) else v for k, v in inputs.items()}
