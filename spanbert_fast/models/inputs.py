"""The inputs of every model: the arguments of a Hugging Face model as one packed value."""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers.utils.generic import can_return_tuple

from spanbert_fast.nn.packing import Packing


class EncoderInputs(NamedTuple):
    """The packed inputs of an encoder.

    Attributes:
        packing: how the sequences lie in rows, and how rows go back to the shape of the input.
        input_ids: int64 (total_tokens,); None if inputs_embeds is given.
        inputs_embeds: (total_tokens, hidden_size); None if input_ids is given.
        position_ids, token_type_ids: int64 (total_tokens,).
        every_stage: keep the hidden states of every stage.
    """

    packing: Packing
    input_ids: torch.Tensor | None
    inputs_embeds: torch.Tensor | None
    position_ids: torch.Tensor
    token_type_ids: torch.Tensor
    every_stage: bool = False

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        *,
        max_positions: int,
        every_stage: bool = False,
    ) -> "EncoderInputs":
        """Pack the arguments of a forward; see `SpanBertModel.forward`.

        Args:
            max_positions: the length of the position table, which no sequence may exceed.

        Raises:
            ValueError: an argument is not valid; the message names it and its value.
        """
        packing = _packing_of(input_ids, attention_mask, inputs_embeds, cu_seqlens, max_seqlen)
        if position_ids is None:
            shape = packing.padded_shape
            longest = packing.max_seqlen if shape is None else shape[1]
            if longest > max_positions:
                raise ValueError(
                    "sequences must not be longer than max_position_embeddings = "
                    f"{max_positions}, got {longest}"
                )
            position_ids = packing.position_ids()
        else:
            position_ids = packing.pack_ids(position_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        else:
            token_type_ids = packing.pack_ids(token_type_ids)
        return cls(
            packing,
            None if input_ids is None else packing.pack(input_ids),
            None if inputs_embeds is None else packing.pack(inputs_embeds),
            position_ids,
            token_type_ids,
            every_stage,
        )


class Encoded(NamedTuple):
    """What the encoder gives to the heads: rows, and how they are packed."""

    hidden_states: torch.Tensor
    packing: Packing
    stages: list[torch.Tensor] | None

    def padded_stages(self) -> tuple[torch.Tensor, ...] | None:
        """The hidden states of every stage, in the shape of the input."""
        if self.stages is None:
            return None
        return tuple(self.packing.unpack(stage) for stage in self.stages)

    def first_tokens(self) -> torch.Tensor:
        """(batch, hidden_size): the first token of each sequence, in BERT [CLS]. Zeros for an empty
        sequence."""
        return self.packing.of_first_tokens(self.hidden_states[self.packing.first_rows()])


def _packing_of(input_ids, attention_mask, inputs_embeds, cu_seqlens, max_seqlen) -> Packing:
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("exactly one of input_ids and inputs_embeds must be given")
    if inputs_embeds is None:
        name, given, shape = "input_ids", input_ids, input_ids.shape
    else:
        name, given, shape = "inputs_embeds", inputs_embeds, inputs_embeds.shape[:-1]
    if len(shape) == 1:
        if attention_mask is not None:
            raise ValueError(f"attention_mask must be None with packed {name}")
        return Packing.of_packed(cu_seqlens, max_seqlen, shape[0])
    if len(shape) != 2 or cu_seqlens is not None:
        raise ValueError(
            f"{name} must be padded (batch, seqlen, ...), or packed (total_tokens, ...) with "
            f"cu_seqlens, got {tuple(given.shape)} and cu_seqlens "
            f"{'given' if cu_seqlens is not None else 'None'}"
        )
    return Packing.of_padded(tuple(shape), attention_mask, given.device)


_BEFORE = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
_BEHIND = ("cu_seqlens", "max_seqlen")
_SWITCHES = ("output_attentions", "output_hidden_states")
# arguments that the Trainer and pipelines pass to every model, and that mean nothing here
_HARMLESS = {"num_items_in_batch", "use_cache"}


def takes_encoder_inputs(forward: Callable) -> Callable:
    """Give `forward(self, inputs: EncoderInputs, ...)` the signature of a Hugging Face model.

    The encoder's arguments come first, then the forward's own, then cu_seqlens, max_seqlen,
    output_attentions and output_hidden_states. return_dict works as in every model. No other place
    lists these arguments one by one.

    Raises:
        ValueError: output_attentions is asked for, but attention probabilities are not kept.
        TypeError: an argument is unknown; no argument is silently ignored.
    """
    own = list(inspect.signature(forward).parameters.values())[2:]
    own_names = [parameter.name for parameter in own]
    names = (*_BEFORE, *own_names, *_BEHIND, *_SWITCHES)

    @functools.wraps(forward)
    def packed_forward(self, *arguments, **named):
        if len(arguments) > len(names):
            raise TypeError(f"{type(self).__name__} takes {len(names)} arguments at most")
        for name, value in zip(names, arguments, strict=False):
            if name in named:
                raise TypeError(f"{type(self).__name__} got the argument {name!r} twice")
            named[name] = value
        self.refuse_attentions(named.pop("output_attentions", None))
        every_stage = self.wants_hidden_states(named.pop("output_hidden_states", None))
        given = {name: named.pop(name, None) for name in (*_BEFORE, *_BEHIND)}
        wanted = {name: named.pop(name) for name in own_names if name in named}
        for name, value in sorted(named.items()):
            if name not in _HARMLESS and value is not None:
                raise TypeError(f"{type(self).__name__} got an unexpected argument {name!r}")
        return forward(self, self.encoder_inputs(every_stage=every_stage, **given), **wanted)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("self", kind)]
    parameters += [
        inspect.Parameter(name, kind, default=None, annotation=torch.Tensor | None)
        for name in _BEFORE
    ]
    parameters += [parameter.replace(kind=kind) for parameter in own]
    annotations = {"cu_seqlens": torch.Tensor | None, "max_seqlen": int | None}
    parameters += [
        inspect.Parameter(name, kind, default=None, annotation=annotations.get(name, bool | None))
        for name in (*_BEHIND, *_SWITCHES)
    ]
    parameters.append(inspect.Parameter("others", inspect.Parameter.VAR_KEYWORD))
    result = inspect.signature(forward).return_annotation
    wrapped = can_return_tuple(packed_forward)
    wrapped.__signature__ = inspect.Signature(parameters, return_annotation=result)
    return wrapped
