"""A layer, the stack of layers and the model: packed once at the entry, padded once at the exit."""

import dataclasses
import inspect
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from spanbert_fast.accelerated.packed import (
    Fast,
    Packed,
    Wanted,
    can_select_stages,
    needs_batch_dimension,
    not_covered,
    say_that_stock_runs,
    selected_stages,
)
from spanbert_fast.accelerated.parts import FastEmbeddings
from spanbert_fast.nn.key_masks import packing_of_mask, starts_are_tokens
from spanbert_fast.nn.linear import apply_linear
from spanbert_fast.nn.packing import Packing
from spanbert_fast.ops.dropout import DropoutPlan


class FastLayer(Fast):
    """Self-attention, then the feed-forward network."""

    parts: tuple[str, ...] = ("attention", "intermediate", "output")

    def forward(self, *others, packed: Packed | None = None, **named) -> torch.Tensor:
        """hidden_states' shape; zeros where a padding mask is 0. With `packed`, (total_tokens,
        hidden_size) -> the same, or (num_rows, hidden_size)."""
        if packed is not None:
            return self.packed(others[0], packed)
        output = self.on_tokens(self.packed, others, named)
        return super().forward(*others, **named) if output is None else output

    def packed(self, x: torch.Tensor, packed: Packed) -> torch.Tensor:
        """The layer on packed rows."""
        x, _ = self.attention(x, packed=packed)
        dropout = packed.after_feed_forward(self.output.dropout)
        return self.output(self.intermediate(x), x, dropout=dropout)


class FastEncoder(Fast):
    """The stack of layers: packed once in front of the first, padded once behind the last."""

    def forward(
        self,
        *others,
        packed: Packed | None = None,
        stages: list[torch.Tensor] | None = None,
        **named,
    ) -> ModelOutput:
        """last_hidden_state, shaped as hidden_states; zeros where a padding mask is 0.

        With `packed`, `stages` is a list to which the hidden states of every stage are appended,
        and of the last layer only `packed.rows` are computed.
        """
        if packed is None:
            output = self.on_tokens(self.packed, others, named)
            if output is None:
                return super().forward(*others, **named)
        else:
            output = self.packed(others[0], packed, stages)
        return self.row.encoder_output(last_hidden_state=output)

    def packed(self, x: torch.Tensor, packed: Packed, stages: list | None = None) -> torch.Tensor:
        """The layers on packed rows."""
        if stages is not None:
            stages.append(x)
        for index, layer in enumerate(self.layer):
            rows = packed.rows if index == len(self.layer) - 1 else None
            # hidden states by position, the plan as an argument: checkpointing needs both
            x = layer(x, packed=dataclasses.replace(packed, layer=index, rows=rows))
            if stages is not None:
                stages.append(x)
        return x


class FastModel(Fast):
    """The encoder with its embeddings, which computes no padding (contract C7).

    last_hidden_state and hidden_states are zero where attention_mask is 0; with `fill_padding`
    they are transformers', whose code then runs. Under autocast the residual stream is fp32, as in
    transformers.
    """

    fill_padding = False

    @classmethod
    def parts_of(cls, module: nn.Module) -> tuple[str, ...]:
        return "embeddings", cls.row.encoder

    def forward(
        self, *others, wanted: Wanted | None = None, **named
    ) -> ModelOutput | tuple[torch.Tensor, ...]:
        """See transformers' forward; `spanbert_fast=False` runs that.

        With `wanted`, last_hidden_state may be zero where a token is not wanted.
        """
        given = self.arguments(others, named)
        packing, reason = None, None
        if given.get("spanbert_fast") is not False:
            packing, reason = self._packing(given)
        wanted_stages = given.get("output_hidden_states")
        if wanted_stages is None:
            wanted_stages = self.config.output_hidden_states
        if self.fill_padding and packing is not None and packing.indices is not None:
            packing = None if wanted is None or wanted_stages else packing
        if packing is None:
            if reason is not None:
                say_that_stock_runs(reason)
            return super().forward(*others, **{**named, "spanbert_fast": False})
        plan = DropoutPlan.draw(packing.cu_seqlens.device) if self.training else None
        packed = Packed(packing, plan, self.num_layers())
        stages: list[torch.Tensor] | None = [] if wanted_stages else None
        if stages is None and wanted is not None:
            rows = wanted.rows(packing)
            last = self.packed(given, dataclasses.replace(packed, rows=rows))
            hidden_states = wanted.padded(last, rows, packing)
        else:
            last = self.packed(given, packed, stages)
            hidden_states = packing.unpack(last)
        output = self.row.model_output(last_hidden_state=hidden_states)
        if getattr(self, "pooler", None) is not None:
            output["pooler_output"] = self.pooler(hidden_states)
        if stages is not None:
            chosen = selected_stages(self, wanted_stages, len(stages))
            early = [packing.unpack(x) if i in chosen else None for i, x in enumerate(stages[:-1])]
            last_stage = hidden_states if len(early) in chosen else None
            output["hidden_states"] = (*early, last_stage)
        if given.get("return_dict", self.config.return_dict) is False:
            return output.to_tuple()
        return output

    def num_layers(self) -> int:
        """Also the number by which the embeddings' dropout has its site."""
        return len(getattr(self, self.row.encoder).layer)

    def packed(self, given: dict, packed: Packed, stages: list | None = None) -> torch.Tensor:
        """The model from a forward's arguments, by their names, to packed hidden states; see
        `FastEncoder.forward`."""
        x = self._embedded(given, packed)
        encoder = getattr(self, self.row.encoder)
        return encoder(x, packed=packed, stages=stages).last_hidden_state

    def _embedded(self, given: dict, packed: Packed) -> torch.Tensor:
        embeddings = self.embeddings
        if isinstance(embeddings, FastEmbeddings) and embeddings.can_pack():
            x = embeddings(packed=packed, given=given)
        else:
            if packed.packing.padded_shape is None:
                raise ValueError(
                    "the input must be padded where embeddings have hooks, adapters or modules of "
                    "a user's own, got a packed one"
                )
            theirs = {name: given[name] for name in _names(embeddings) if name in given}
            x = packed.packing.pack(embeddings(**theirs))
        project = getattr(self, "embeddings_project", None)
        return x if project is None else apply_linear(project, x)

    def _packing(self, given: dict) -> tuple[Packing | None, str | None]:
        """How the batch packs; or None and why transformers' own code has to run."""
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if (ids is None) == (embeds is None):
            return None, None  # an error, which is transformers' to raise
        reason = not_covered(self.config, given) or needs_batch_dimension(self)
        if reason is not None:
            return None, reason
        wanted_stages = given.get("output_hidden_states")
        if not (can_select_stages or isinstance(wanted_stages, bool | None)):
            return None, "output_hidden_states selects stages"
        first: Any = ids if embeds is None else embeds
        shape, attention_mask = tuple(first.shape[:2]), given.get("attention_mask")
        if len(shape) != 2:
            return None, "the input has no batch dimension"
        if attention_mask is not None and attention_mask.dim() != 2:
            return None, f"attention_mask has {attention_mask.dim()} dimensions and not 2"
        if attention_mask is not None and (torch.jit.is_tracing() or torch.compiler.is_exporting()):
            raise RuntimeError(
                "attention_mask must be None where torch.export or torch.jit.trace records a "
                "model on packed tokens, got a tensor; spanbert_fast.decelerate brings back one "
                "that takes masks"
            )
        packing = packing_of_mask(attention_mask, shape, first.device)
        if packing is None:
            return None, "attention_mask has another shape than the input"
        if not starts_are_tokens(packing):
            return None, "attention_mask is 0 at the first position of a sequence"
        return packing, None


def _names(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)
