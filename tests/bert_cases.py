"""Shared by the tests of BERT models: sizes and large weights.

The default standard deviation of 0.02 hides real faults: a wrong softmax scale moves the output by
2e-5. Here every weight and bias has 0.3, and norms are random around 1.
"""

import torch

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


def widened(inputs):
    def is_real(value):
        return torch.is_tensor(value) and value.is_floating_point()

    return {k: v.double() if is_real(v) else v for k, v in inputs.items()}
