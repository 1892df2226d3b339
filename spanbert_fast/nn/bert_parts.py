"""The parts of `spanbert_fast.nn.bert`: what stands inside a layer, and the embeddings."""

import functools
import inspect
import warnings
from collections.abc import Callable

import torch
from torch import nn
from transformers import BertConfig
from transformers.activations import GELUActivation
from transformers.models.bert import modeling_bert as stock

from spanbert_fast.nn.embeddings import EmbeddingTables, PackedIds, embed
from spanbert_fast.nn.key_masks import packing_of_mask, starts_are_tokens
from spanbert_fast.nn.linear import apply_linear, is_plain, linear_gelu, linear_without_bias
from spanbert_fast.nn.packing import Packing
from spanbert_fast.ops.dropout import Dropout, DropoutPlan
from spanbert_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm
from spanbert_fast.ops.varlen_attention import varlen_attention

# What callers pass to every model and means nothing here, or is looked at by name.
_KNOWN = {
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "position_ids",
    "return_dict",
    "spanbert_fast",
    "use_cache",
}

# transformers' classes -> ours. Ours are subclasses without state of their own, so that an instance
# changes from one to the other by its class alone: parameters, hooks and names stay where they are.
FAST: dict[type[nn.Module], type[nn.Module]] = {}


def in_place_of(theirs: type[nn.Module]) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: `make_fast` turns instances of `theirs` into instances of this class."""

    def register(ours: type[nn.Module]) -> type[nn.Module]:
        FAST[theirs] = ours
        return ours

    return register


def make_fast(module: nn.Module) -> None:
    """Give every submodule of one of transformers' classes (not of a subclass) ours, in place."""
    for part in module.modules():
        if type(part) in FAST:
            part.__class__ = FAST[type(part)]


def passed_on_to(theirs: type[nn.Module]) -> Callable[[Callable], Callable]:
    """Decorator of a `forward` that hands what it does not know to that of `theirs`.

    transformers renames and adds arguments from version to version: such a forward names those
    that it reads, takes `*others, **named`, and passes these on. Callers see the signature of
    `theirs`, at which the Trainer and sentence-transformers look.
    """

    signature = inspect.signature(theirs.forward)
    parameters = list(signature.parameters.values())[1:]
    _POSITIONAL[theirs] = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    def sign(forward: Callable) -> Callable:
        forward.__signature__ = signature
        return forward

    return sign


# transformers' classes -> the names of their forward's positional arguments
_POSITIONAL: dict[type[nn.Module], list[str]] = {}


def named_arguments(theirs: type[nn.Module], known: int, others: tuple, named: dict) -> dict:
    """`named`, and `others`, which came by position behind `known` arguments, under the names that
    the forward of `theirs` has for them."""
    return {**dict(zip(_POSITIONAL[theirs][known:], others, strict=False)), **named}


@functools.lru_cache
def warn_once(message: str) -> None:
    """Warn the first time that this message comes."""
    warnings.warn(message, stacklevel=3)


def not_covered(config: BertConfig, kwargs: dict) -> str | None:
    """Why a call needs transformers' own code; None where it is covered."""
    if config.is_decoder or config.add_cross_attention:
        return "the configuration is a decoder's"
    wants_attentions = kwargs.get("output_attentions")
    if config.output_attentions if wants_attentions is None else wants_attentions:
        return "output_attentions needs attention probabilities, which are not kept here"
    for name, value in kwargs.items():
        if name not in _KNOWN and value is not None and value is not False:
            return f"{name} is given"
    return None


def active_p(module: nn.Module) -> float:
    """The probability that a plain dropout module drops with now: it goes by its own training
    mode. 0 for what stands in the place of one, which is called as it is."""
    return module.p if is_plain(module, nn.Dropout) and module.training else 0.0


class OnTokens(nn.Module):
    """What encoder, layer and attention share: padded input is packed, run and padded again."""

    def on_tokens(
        self, run: Callable, hidden_states: torch.Tensor, attention_mask, config, kwargs: dict
    ) -> torch.Tensor | None:
        """`run(packed, packing, plan=None)`, padded; None where that is not covered."""
        if kwargs.get("spanbert_fast") is False:
            return None
        reason = not_covered(config, kwargs)
        if reason is None and (kwargs.get("output_hidden_states") or config.output_hidden_states):
            reason = "output_hidden_states is wanted of a part of a model"
        if reason is None:
            batch, seqlen = hidden_states.shape[:2]
            packing = packing_of_mask(attention_mask, (batch, seqlen), hidden_states.device)
            if packing is not None and starts_are_tokens(packing):
                return packing.unpack(run(packing.pack(hidden_states), packing, None))
            reason = "attention_mask is not one of padding at the end or between tokens"
        warn_once(f"transformers' own code runs in place of spanbert_fast's: {reason}")
        return None


@in_place_of(stock.BertEmbeddings)
class BertEmbeddings(stock.BertEmbeddings):
    """Word, position and token-type tables, their norm and dropout, in one op on packed tokens."""

    @passed_on_to(stock.BertEmbeddings)
    def forward(
        self,
        input_ids=None,
        token_type_ids=None,
        position_ids=None,
        inputs_embeds=None,
        *others,
        packing: Packing | None = None,
        plan: DropoutPlan | None = None,
        num_layers: int = 0,
        **named,
    ) -> torch.Tensor:
        """As transformers'; with the inputs' `packing`, (total_tokens, hidden_size)."""
        if packing is None:
            return super().forward(
                input_ids, token_type_ids, position_ids, inputs_embeds, *others, **named
            )
        words = None if input_ids is None else packing.pack_ids(input_ids).long()
        embeds = None if inputs_embeds is None else packing.pack(inputs_embeds)
        places = packing.position_ids() if position_ids is None else packing.pack_ids(position_ids)
        places = places.long()
        if token_type_ids is None:
            types = torch.zeros_like(places)
        else:
            types = packing.pack_ids(token_type_ids).long()
        dropout = None
        if p := active_p(self.dropout):
            dropout = (plan or DropoutPlan.draw(places.device)).embeddings(num_layers, p)
        x = embed(
            EmbeddingTables(
                self.word_embeddings,
                self.position_embeddings,
                self.token_type_embeddings,
                self.LayerNorm,
            ),
            PackedIds(words, places, types, embeds),
            dropout=dropout,
        )
        return x if is_plain(self.dropout, nn.Dropout) else self.dropout(x)


@in_place_of(stock.BertSelfAttention)
class BertSelfAttention(OnTokens, stock.BertSelfAttention):
    """Multi-head self-attention within each sequence; heads concatenated, not yet projected."""

    @passed_on_to(stock.BertSelfAttention)
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *others,
        packing: Packing | None = None,
        plan: DropoutPlan | None = None,
        **named,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(context, attention probabilities or None), shaped as hidden_states."""
        if packing is not None:
            return self._packed(hidden_states, packing, plan), None
        given = named_arguments(stock.BertSelfAttention, 2, others, named)
        output = self.on_tokens(self._packed, hidden_states, attention_mask, self.config, given)
        if output is None:
            return super().forward(hidden_states, attention_mask, *others, **named)
        return output, None

    def _packed(self, hidden_states, packing: Packing, plan: DropoutPlan | None) -> torch.Tensor:
        q, k, v = (
            apply_linear(linear, hidden_states).unflatten(1, (self.num_attention_heads, -1))
            for linear in (self.query, self.key, self.value)
        )
        # transformers' attention goes by its own mode, whatever its dropout module's
        dropout = None
        if self.training and (p := self.dropout.p):
            plan = plan or DropoutPlan.draw(hidden_states.device)
            dropout = plan.attention(self.layer_idx or 0, p)
        context = varlen_attention(
            q,
            k,
            v,
            packing.cu_seqlens,
            packing.max_seqlen,
            softmax_scale=self.scaling,
            dropout=dropout,
        )
        return context.flatten(1)


class _Output(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual) in one op after the matrix product."""

    dense: nn.Linear
    LayerNorm: nn.LayerNorm
    dropout: nn.Dropout

    def forward(
        self,
        hidden_states: torch.Tensor,
        input_tensor: torch.Tensor,
        *,
        dropout: Dropout | None = None,
    ) -> torch.Tensor:
        """Without `dropout` the module draws its own where its dropout module is training."""
        norm = self.LayerNorm
        if not (is_plain(norm, nn.LayerNorm) and is_plain(self.dropout, nn.Dropout)):
            return super().forward(hidden_states, input_tensor)
        y, bias = linear_without_bias(self.dense, hidden_states)
        if dropout is None and (p := active_p(self.dropout)):
            dropout = DropoutPlan.draw(y.device).after_attention(0, p)
        output = dropout_add_layer_norm(
            y.flatten(0, -2),
            input_tensor.flatten(0, -2),
            norm.weight,
            norm.bias,
            x_bias=bias,
            dropout=dropout,
            eps=norm.eps,
        )
        # FSDP warns of views that leave its units
        return output if input_tensor.dim() == 2 else output.view(input_tensor.shape)


@in_place_of(stock.BertSelfOutput)
class BertSelfOutput(_Output, stock.BertSelfOutput):
    """The projection after attention, with dropout, residual and norm."""


@in_place_of(stock.BertOutput)
class BertOutput(_Output, stock.BertOutput):
    """The second half of the feed-forward network, with dropout, residual and norm."""


@in_place_of(stock.BertIntermediate)
class BertIntermediate(stock.BertIntermediate):
    """GELU(W x + b) with bias and activation in one op; other activations by transformers."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not is_plain(self.intermediate_act_fn, GELUActivation):
            return super().forward(hidden_states)
        return linear_gelu(self.dense, hidden_states)


@in_place_of(stock.BertAttention)
class BertAttention(stock.BertAttention):
    """Self-attention and its projection."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        make_fast(self)

    @passed_on_to(stock.BertAttention)
    def forward(
        self,
        hidden_states: torch.Tensor,
        *others,
        packing: Packing | None = None,
        plan: DropoutPlan | None = None,
        rows: torch.Tensor | None = None,
        **named,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if packing is None:
            return super().forward(hidden_states, *others, **named)
        context, _ = self.self(hidden_states, packing=packing, plan=plan)
        if rows is not None:
            context, hidden_states = context[rows], hidden_states[rows]
        dropout, p = None, active_p(self.output.dropout)
        if plan is not None and p:
            dropout = plan.after_attention(self.self.layer_idx or 0, p, rows)
        return self.output(context, hidden_states, dropout=dropout), None
