"""`accelerate`: an existing Hugging Face encoder on this package's ops, in place."""

import warnings

from torch import nn

from spanbert_fast.accelerated.encoder import FastModel
from spanbert_fast.accelerated.masked_lm import MaskedLMHead
from spanbert_fast.accelerated.registry import is_fast, make_fast
from spanbert_fast.accelerated.survey import Survey, survey


def accelerate(
    model: nn.Module,
    *,
    full_logits: bool = False,
    fill_padding: bool = False,
    dry_run: bool = False,
) -> nn.Module | Survey:
    """Make every encoder of a known family in `model` compute on packed tokens with our ops.

        model = RobertaForSequenceClassification.from_pretrained(...)
        spanbert_fast.accelerate(model)

    The families: BERT, RoBERTa, XLM-RoBERTa, CamemBERT, Data2VecText, ELECTRA, DistilBERT, ERNIE,
    LayoutLM and BertGeneration of transformers, with their heads.

    An encoder of another family beside them stays as it is, which a warning says.

    Works in place and changes the modules' classes alone, to subclasses of the same names:
    parameters, buffers, hooks, their names and the optimisers that hold them stay. Results equal
    transformers' to rounding, except that:

    - where attention_mask is 0, last_hidden_state and hidden_states are zero (so in the pipeline
      "feature-extraction" and in sentence-transformers' `encode(output_value=None)`): see
      `fill_padding`; a sequence whose mask is zero throughout is zero throughout;
    - dropout draws other random numbers (by the same law; rates to 1/256);
    - masked LMs, and BERT's and ERNIE's ForPreTraining, training with labels, compute the loss from
      the labelled rows alone and return no (prediction) logits: see `full_logits`;
    - ForQuestionAnswering models never answer with padding, in the loss as in the logits;
    - a hook inside the encoder sees (total_tokens, hidden_size); one on the embeddings sees padded
      input;
    - second derivatives (`create_graph=True`) raise a RuntimeError, and so does torch.export, or
      torch.jit.trace, of a call with an attention_mask: `decelerate` first.

    A call that this does not cover (output_attentions, caches, masks of other than two dimensions,
    sequences padded in front, labels on padding; transforms of torch.func, gradients per sample,
    peft's adapter_names) runs transformers' code, and says so once; the argument
    `spanbert_fast=False` asks for it.

    Call it before what wraps or patches modules (Accelerator.prepare, FSDP); adapters that replace
    linear layers or embeddings (PEFT) may come before or after.

    Args:
        model: a transformers encoder of any head, or any module that holds one.
        full_logits: return all logits while training, too, at the cost of computing them.
        fill_padding: where hidden states are returned, compute those at padding, too, to the values
            that transformers has there. A padded batch then runs transformers' code, as with
            `spanbert_fast=False`; heads that read first tokens alone, and masked LMs that train,
            go on without padding.
        dry_run: change nothing, and say what would be replaced and what not.

    Returns:
        `model`; with `dry_run`, a `Survey`, which prints as a table.

    Raises:
        ValueError: there is no such encoder inside, or one that is not covered (decoder,
            cross-attention, relative positions, another activation, modules that are not
            transformers' own); then nothing has been changed.
    """
    found = survey(model)
    if dry_run:
        return found
    if found.error is not None:
        raise ValueError(found.error)
    for finding in found.findings:
        if finding.verdict == "unknown":
            warnings.warn(f"{finding.name} ({finding.class_name}): {finding.reason}", stacklevel=2)
    make_fast(model)
    for module in model.modules():
        if isinstance(module, MaskedLMHead):
            module.full_logits = full_logits
        if isinstance(module, FastModel):
            module.fill_padding = fill_padding
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
    accelerated = [module for module in model.modules() if is_fast(type(module))]
    if not accelerated:
        raise ValueError(f"model must be accelerated, got {type(model).__name__} as it was")
    for module in accelerated:
        for option in ("full_logits", "fill_padding"):
            vars(module).pop(option, None)
        module.__class__ = vars(type(module))["stock"]
    return model
