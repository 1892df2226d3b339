"""`accelerate`: an existing Hugging Face BERT on this package's ops, in place."""

from torch import nn
from transformers.activations import GELUActivation
from transformers.models.bert import modeling_bert as stock

from spanbert_fast.models.bert import FAST, make_fast

# The classes whose code may be a user's own: they hold an encoder or stand over one.
_MAY_BE_SUBCLASSED = stock.BertPreTrainedModel
_OURS = {ours: theirs for theirs, ours in FAST.items()}


def accelerate(model: nn.Module, *, full_logits: bool = False) -> nn.Module:
    """Make every transformers BERT inside `model` compute on packed tokens with this package's ops.

        model = BertForSequenceClassification.from_pretrained(...)
        spanbert_fast.accelerate(model)

    Works in place and changes the modules' classes alone, to subclasses of the same names:
    parameters, buffers, hooks, their names and the optimisers that hold them stay. Results equal
    transformers' to rounding, except that:

    - where attention_mask is 0, last_hidden_state and hidden_states are zero;
    - dropout draws other random numbers (by the same law; rates to 1/256);
    - BertForMaskedLM and BertForPreTraining, training with labels, compute the loss from the
      labelled rows alone and return no (prediction) logits: see `full_logits`;
    - BertForQuestionAnswering never answers with padding, in the loss as in the logits;
    - a hook inside the encoder sees (total_tokens, hidden_size);
    - second derivatives (`create_graph=True`) raise a RuntimeError, and so does torch.export, or
      torch.jit.trace, of a call with an attention_mask: `decelerate` first.

    A call that this does not cover (output_attentions, caches, masks of other than two dimensions,
    sequences padded in front, labels on padding) runs transformers' code, and says so once; the
    argument `spanbert_fast=False` asks for it.

    Call it before what wraps or patches modules (Accelerator.prepare, FSDP); adapters that replace
    linear layers or embeddings (PEFT) may come before or after.

    Args:
        model: a transformers BERT of any head, or any module that holds one.
        full_logits: return all logits while training, too, at the cost of computing them.

    Returns:
        `model`.

    Raises:
        ValueError: there is no BERT inside, or one that is not covered (decoder, cross-attention,
            relative positions, another activation, modules that are not transformers' own); then
            nothing has been changed.
    """
    modules = list(model.named_modules())
    if not any(type(module) in FAST or type(module) in _OURS for _, module in modules):
        raise ValueError(
            "model must hold an encoder of transformers.BertModel, got "
            f'{type(model).__name__} without one (attn_implementation="spanbert_fast" is for '
            "other encoders)"
        )
    for name, module in modules:
        _check(name or type(model).__name__, module)
    make_fast(model)
    for _, module in modules:
        if hasattr(module, "full_logits"):
            module.full_logits = full_logits
    return model


def decelerate(model: nn.Module) -> nn.Module:
    """Undo `accelerate`: every module is of transformers' own class again.

    Args:
        model: what `accelerate` was given, or a module that holds it.

    Returns:
        `model`.

    Raises:
        ValueError: nothing in `model` is accelerated.
    """
    accelerated = [module for module in model.modules() if type(module) in _OURS]
    if not accelerated:
        raise ValueError(f"model must be accelerated, got {type(model).__name__} as it was")
    for module in accelerated:
        vars(module).pop("full_logits", None)
        module.__class__ = _OURS[type(module)]
    return model


def _check(name: str, module: nn.Module) -> None:
    """Raise unless `module`, if it is a part of a BERT, is one that the packed path computes."""
    kind = next((theirs for theirs in FAST if isinstance(module, theirs)), None)
    if isinstance(module, stock.BertCrossAttention):
        raise ValueError(f"{name} must not be there: cross-attention is not covered")
    if kind is None:
        return
    if type(module) not in FAST and type(module) not in _OURS:
        if isinstance(module, _MAY_BE_SUBCLASSED):
            return
        raise ValueError(
            f"{name} must be transformers' own {kind.__name__}, got its subclass "
            f"{type(module).__name__}; accelerate comes before what wraps modules"
        )
    if "forward" in vars(module):
        raise ValueError(
            f"{name} must not have a forward of its own on the instance; accelerate comes before "
            "what patches modules, such as Accelerator.prepare"
        )
    if kind is stock.BertEncoder:
        _check_config(name, module.config)
    if kind is stock.BertIntermediate and type(module.intermediate_act_fn) is not GELUActivation:
        activation = type(module.intermediate_act_fn).__name__
        raise ValueError(f'{name} must have hidden_act "gelu" (the erf form), got {activation}')
    parts = {
        stock.BertLayer: ("attention", "intermediate", "output"),
        stock.BertAttention: ("self", "output"),
        stock.BertModel: ("embeddings", "encoder"),
    }
    for part in parts.get(kind, ()):
        if not isinstance(getattr(module, part), tuple(FAST)):
            got = type(getattr(module, part)).__name__
            raise ValueError(f"{name}.{part} must be transformers' own module, got {got}")
    dropout = getattr(module, "dropout", None)
    if type(dropout) is nn.Dropout and dropout.p != 0 and not 1 / 512 <= dropout.p < 511 / 512:
        raise ValueError(f"{name}.dropout must be 0 or in [1/512, 511/512), got {dropout.p}")


def _check_config(name: str, config) -> None:
    if config.is_decoder or config.add_cross_attention:
        raise ValueError(
            f"{name} must be an encoder, got is_decoder={config.is_decoder} and "
            f"add_cross_attention={config.add_cross_attention}"
        )
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise ValueError(f'{name} must have absolute positions, got "{positions}"')
