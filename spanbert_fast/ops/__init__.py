"""One public, differentiable function per op: validation, dispatch, autograd.

Each is in the module of its name, which is loaded when first used: `from
spanbert_fast.ops.varlen_attention import varlen_attention`.
"""

from typing import TYPE_CHECKING

from spanbert_fast._lazy import lazy

OPS = (
    "adamw",
    "antecedent_loss",
    "antecedent_top_k",
    "bias_gelu",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "linear",
    "linear_cross_entropy",
    "padding",
    "sample_spans",
    "span_boundary_gather",
    "span_representation",
    "varlen_attention",
)
_MODULES = (*OPS, "dropout", "span_options")  # the last two define values that ops take

if TYPE_CHECKING:
    from spanbert_fast.ops import adamw as adamw
    from spanbert_fast.ops import antecedent_loss as antecedent_loss
    from spanbert_fast.ops import antecedent_top_k as antecedent_top_k
    from spanbert_fast.ops import bias_gelu as bias_gelu
    from spanbert_fast.ops import dropout as dropout
    from spanbert_fast.ops import dropout_add_layer_norm as dropout_add_layer_norm
    from spanbert_fast.ops import embedding_layer_norm as embedding_layer_norm
    from spanbert_fast.ops import linear as linear
    from spanbert_fast.ops import linear_cross_entropy as linear_cross_entropy
    from spanbert_fast.ops import padding as padding
    from spanbert_fast.ops import sample_spans as sample_spans
    from spanbert_fast.ops import span_boundary_gather as span_boundary_gather
    from spanbert_fast.ops import span_options as span_options
    from spanbert_fast.ops import span_representation as span_representation
    from spanbert_fast.ops import varlen_attention as varlen_attention
else:
    __getattr__ = lazy(__name__, _MODULES)
