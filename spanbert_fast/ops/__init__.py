"""One public, differentiable function per op: validation, dispatch, autograd.

Each is in the module of its name: `from spanbert_fast.ops.varlen_attention import
varlen_attention`.
"""

OPS = (
    "antecedent_loss",
    "antecedent_top_k",
    "bias_gelu",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "linear",
    "linear_cross_entropy",
    "pad",
    "sample_spans",
    "span_boundary_gather",
    "span_representation",
    "varlen_attention",
)
