"""What travels through an accelerated model beside its hidden states, and when it cannot."""

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from transformers.utils import output_capturing

from spanbert_fast.nn.key_masks import packing_of_mask, starts_are_tokens
from spanbert_fast.nn.linear import is_plain
from spanbert_fast.nn.packing import Packing
from spanbert_fast.ops.dropout import Dropout, DropoutPlan
from spanbert_fast.ops.padding import rows_where
from spanbert_fast.values import IGNORED_TARGET

if TYPE_CHECKING:
    from spanbert_fast.accelerated.families import Family

    class _Stock(nn.Module):
        """The class of transformers behind a mixin, whose attributes are that class's own."""

        row: Family  # transformers evaluates the annotations of `Fast`, where it cannot be imported

        def __getattr__(self, name: str) -> Any: ...

else:
    _Stock = object

# What callers pass to every model and means nothing here, or is looked at by name.
_KNOWN = {
    "attention_mask",
    "bbox",
    "input_ids",
    "inputs_embeds",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "position_ids",
    "return_dict",
    "spanbert_fast",
    "task_type_ids",
    "token_type_ids",
    "use_cache",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """The keyword argument `packed` of every accelerated part, where hidden states are packed.

    Attributes:
        packing: how sequences lie in the rows of the hidden states.
        plan: of the step's dropout; None where each module draws its own.
        layer: the layer's number, by which its dropout has its sites; behind the last one, that
            of the embeddings.
        rows: int64 (num_rows,), the rows that are needed after attention; None for all.
    """

    packing: Packing
    plan: DropoutPlan | None = None
    layer: int = 0
    rows: torch.Tensor | None = None

    def of_attention(self, p: float) -> Dropout | None:
        """Dropout of the attention probabilities."""
        return self._plan().attention(self.layer, p) if p else None

    def after_attention(self, module: nn.Module) -> Dropout | None:
        """What the dropout module behind attention's projection does."""
        p = active_p(module)
        return self._plan().after_attention(self.layer, p, self.rows) if p else None

    def after_feed_forward(self, module: nn.Module) -> Dropout | None:
        """What the dropout module behind the feed-forward network does."""
        p = active_p(module)
        return self._plan().after_feed_forward(self.layer, p, self.rows) if p else None

    def of_embeddings(self, module: nn.Module) -> Dropout | None:
        """What the dropout module of the embeddings does."""
        p = active_p(module)
        return self._plan().embeddings(self.layer, p) if p else None

    def _plan(self) -> DropoutPlan:
        # a dropout module may train where the model does not
        return self.plan or DropoutPlan.draw(self.packing.cu_seqlens.device)


class Wanted(Protocol):
    """The rows of the last hidden state that a head reads, of which alone the last layer is
    computed."""

    def rows(self, packing: Packing) -> torch.Tensor:
        """int64 (num_rows,), of the packed rows."""

    def padded(self, x: torch.Tensor, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        """(num_rows, hidden_size) of these `rows` -> (batch, seqlen, hidden_size), others zero."""


class FirstTokens:
    """Each sequence's first token; zeros for a sequence without any."""

    def rows(self, packing: Packing) -> torch.Tensor:
        return packing.first_rows()

    def padded(self, x: torch.Tensor, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        first = packing.of_first_tokens(x)
        assert packing.padded_shape is not None
        rest = x.new_zeros((len(first), packing.padded_shape[1] - 1, x.shape[-1]))
        return torch.cat([first[:, None], rest], dim=1)


class Labelled:
    """The tokens that `labels`, (batch, seqlen), gives a class."""

    def __init__(self, labels: torch.Tensor):
        self.labels = labels

    def rows(self, packing: Packing) -> torch.Tensor:
        return rows_where(packing.pack(self.labels) != IGNORED_TARGET)

    def padded(self, x: torch.Tensor, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        indices = rows if packing.indices is None else packing.indices[rows]
        return dataclasses.replace(packing, indices=indices).unpack(x)


@functools.lru_cache
def warn_once(message: str) -> None:
    """Warn the first time that this message comes."""
    warnings.warn(message, stacklevel=3)


def say_that_stock_runs(reason: str) -> None:
    """Say once that transformers' own code runs, and why."""
    warn_once(f"transformers' own code runs in place of spanbert_fast's: {reason}")


def active_p(module: nn.Module) -> float:
    """The probability that a plain dropout module drops with now: it goes by its own training
    mode. 0 for what stands in the place of one, which is called as it is."""
    return module.p if is_plain(module, nn.Dropout) and module.training else 0.0


def not_covered(config, given: dict) -> str | None:
    """Why a call with these named arguments needs transformers' own code; None where it is
    covered."""
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return "the configuration is a decoder's"
    wants_attentions = given.get("output_attentions")
    if config.output_attentions if wants_attentions is None else wants_attentions:
        return "output_attentions needs attention probabilities, which are not kept here"
    for name, value in given.items():
        if name not in _KNOWN and value is not None and value is not False:
            return f"{name} is given"
    return None


# older versions of transformers know no indices in output_hidden_states
can_select_stages = hasattr(output_capturing, "resolve_hidden_states_indices")


def selected_stages(model, wanted: bool | int | list[int], count: int) -> set[int]:
    """The numbers of the stages, of `count`, that `output_hidden_states` asks for."""
    if wanted is True:
        return set(range(count))
    indices = [wanted] if isinstance(wanted, int) else list(wanted)
    return output_capturing.resolve_hidden_states_indices(model, indices, count)


def needs_batch_dimension(module: nn.Module) -> str | None:
    """Why something outside needs every hidden state of `module` to be (batch, seqlen, ...)."""
    if torch.compiler.is_compiling():
        return None
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is active"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    for part in module.modules():
        for parameter in part._parameters.values():
            if hasattr(parameter, "grad_sample"):
                return "gradients per sample are taken (parameters have a grad_sample)"
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, functools.partial) and "adapter_names" in hook.keywords:
                return "adapter_names choose an adapter for each sequence"
    return None


class Fast(_Stock):
    """What every accelerated class has: arguments that it does not know go to transformers' code.

    transformers renames and adds arguments from version to version. A forward of ours names those
    that it reads, takes `*others, **named`, and passes these on as they came.

    Attributes:
        stock: transformers' class, in whose place this one stands.
        row: the `Family`.
        parts: names of the children that must be accelerated with it; see `parts_of`.
        gelu_name: name of the child that must be the exact GELU.
    """

    stock: type[nn.Module]
    parts: tuple[str, ...] = ()
    gelu_name: str | None = None
    _positional: tuple[str, ...] = ()

    @classmethod
    def parts_of(cls, module: nn.Module) -> tuple[str, ...]:
        """Names of the children of `module` that must be accelerated with it."""
        return cls.parts

    def arguments(self, others: tuple, named: dict) -> dict:
        """`named`, and `others` under the names that transformers' forward has for them."""
        return {**dict(zip(self._positional, others, strict=False)), **named}

    def on_tokens(self, run: Callable, others: tuple, named: dict) -> torch.Tensor | None:
        """`run(packed hidden states, Packed)`, padded; None where that is not covered."""
        given = self.arguments(others, named)
        if given.get("spanbert_fast") is False:
            return None
        hidden_states = given.pop("hidden_states")
        attention_mask = given.pop("attention_mask", None)
        config = _config_of(self)
        reason = not_covered(config, given) or needs_batch_dimension(self)
        if reason is None and (given.get("output_hidden_states") or config.output_hidden_states):
            reason = "output_hidden_states is wanted of a part of a model"
        if reason is None:
            shape = tuple(hidden_states.shape[:2])
            packing = packing_of_mask(attention_mask, shape, hidden_states.device)
            if packing is not None and starts_are_tokens(packing):
                plan = DropoutPlan.draw(hidden_states.device) if self.training else None
                packed = Packed(packing, plan, getattr(self, "layer_idx", None) or 0)
                return packing.unpack(run(packing.pack(hidden_states), packed))
            reason = "attention_mask is not one of padding at the end or between tokens"
        say_that_stock_runs(reason)
        return None


def _config_of(module: nn.Module):
    return next(part.config for part in module.modules() if hasattr(part, "config"))


def signature_of(theirs: type[nn.Module]) -> tuple[inspect.Signature, tuple[str, ...]]:
    """The signature of the forward of `theirs`, at which the Trainer and sentence-transformers
    look, and the names of its positional arguments."""
    signature = inspect.signature(theirs.forward)
    parameters = list(signature.parameters.values())[1:]
    return signature, tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
