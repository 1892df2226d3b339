"""`Packing`: how a batch lies in packed rows, and the ways to pack and unpack it (C7)."""

import dataclasses

import torch

from spanbert_fast.ops.padding import pad, take_tokens, unpad_indices


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """How the sequences of one batch lie in packed rows, and how to return to the padded shape.

        >>> packing = Packing.of_padded((2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]]), "cpu")
        >>> packing.cu_seqlens.tolist(), packing.pack(torch.tensor([[5, 6, 0], [7, 0, 0]]))
        ([0, 2, 3], tensor([5, 6, 7]))

    Attributes:
        cu_seqlens: int32 (batch + 1,).
        max_seqlen: the longest length, or an upper bound of it.
        total_tokens: rows of the packed matrix.
        indices: int64 (total_tokens,), flat padded position of each row; None if every position
            is a token, or if the input came packed.
        padded_shape: (batch, seqlen) of a padded input; None if the input came packed.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    total_tokens: int
    indices: torch.Tensor | None = None
    padded_shape: tuple[int, int] | None = None

    @classmethod
    def of_packed(
        cls, cu_seqlens: torch.Tensor | None, max_seqlen: int | None, total_tokens: int
    ) -> "Packing":
        """For packed input. On the CPU a `max_seqlen` of None is found from cu_seqlens."""
        if cu_seqlens is None:
            raise ValueError("cu_seqlens must be given with packed input, got None")
        if max_seqlen is None:
            if cu_seqlens.device.type != "cpu":
                raise ValueError(
                    "max_seqlen must be given with packed input on a GPU (finding it there would "
                    "stop the host), got None"
                )
            max_seqlen = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
        return cls(cu_seqlens, max_seqlen, total_tokens)

    @classmethod
    def of_padded(
        cls, shape: tuple[int, int], attention_mask: torch.Tensor | None, device: torch.device
    ) -> "Packing":
        """For (batch, seqlen) input. On a GPU the host waits once with a mask, never without."""
        batch, seqlen = shape
        if attention_mask is None:
            cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device=device) * seqlen
            return cls(cu_seqlens, seqlen, batch * seqlen, None, shape)
        if tuple(attention_mask.shape) != tuple(shape):
            raise ValueError(
                f"attention_mask must have shape (batch, seqlen) = {tuple(shape)}, "
                f"got {tuple(attention_mask.shape)}"
            )
        indices, cu_seqlens, max_seqlen = unpad_indices(attention_mask)
        return cls(cu_seqlens, max_seqlen, indices.shape[0], indices, shape)

    @classmethod
    def of(
        cls,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> "Packing":
        """From hidden states: (total_tokens, hidden_size) packed, (batch, seqlen, ...) padded."""
        if hidden_states.dim() == 2:
            if attention_mask is not None:
                raise ValueError("attention_mask must be None with packed hidden_states")
            return cls.of_packed(cu_seqlens, max_seqlen, hidden_states.shape[0])
        if hidden_states.dim() == 3:
            if cu_seqlens is not None:
                raise ValueError("cu_seqlens must be None with padded hidden_states")
            batch, seqlen, _ = hidden_states.shape
            return cls.of_padded((batch, seqlen), attention_mask, hidden_states.device)
        raise ValueError(
            "hidden_states must have shape (total_tokens, hidden_size) or (batch, seqlen, "
            f"hidden_size), got {tuple(hidden_states.shape)}"
        )

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seqlen, ...) -> (total_tokens, ...); packed input is returned as it is."""
        if self.padded_shape is None:
            return x
        return x.flatten(0, 1) if self.indices is None else take_tokens(x, self.indices)

    def pack_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """As `pack`. Ids of shape (1, seqlen) apply to every sequence, as in BertModel."""
        return ids if self.padded_shape is None else self.pack(ids.expand(self.padded_shape))

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """(total_tokens, ...) -> (batch, seqlen, ...), with zeros at padding."""
        if self.padded_shape is None:
            return x
        if self.indices is None:
            return x.unflatten(0, self.padded_shape)
        return pad(x, self.indices, *self.padded_shape)

    def packed_rows(self, positions: torch.Tensor) -> torch.Tensor:
        """int64 packed rows of `positions`, which number flat (batch * seqlen) rows, or packed ones
        if the input came packed. A position at padding becomes -1, which gathers refuse."""
        if self.indices is None or self.padded_shape is None:
            return positions
        batch, seqlen = self.padded_shape
        rows = torch.full((batch * seqlen,), -1, dtype=torch.int64, device=positions.device)
        rows[self.indices] = torch.arange(self.total_tokens, device=positions.device)
        return rows[positions]

    def position_ids(self) -> torch.Tensor:
        """int64 (total_tokens,): the place of each row in its sequence, from 0."""
        if self.padded_shape is not None:
            batch, seqlen = self.padded_shape
            places = torch.arange(seqlen, device=self.cu_seqlens.device)
            return self.pack(places.expand(batch, seqlen))
        starts = torch.repeat_interleave(
            self.cu_seqlens[:-1].long(),
            self.cu_seqlens.diff().long(),
            output_size=self.total_tokens,
        )
        return torch.arange(self.total_tokens, device=starts.device) - starts

    def first_rows(self) -> torch.Tensor:
        """int64 (batch,): the packed row of each sequence's first token. An empty sequence has some
        other row; if all are empty, the result has no element."""
        starts = self.cu_seqlens[:-1].long()
        return starts.clamp(max=self.total_tokens - 1) if self.total_tokens else starts[:0]

    def of_first_tokens(self, rows: torch.Tensor) -> torch.Tensor:
        """(batch, hidden_size) from the rows at `first_rows()`, with zeros for empty sequences."""
        if self.total_tokens == 0:
            return rows.new_zeros((len(self.cu_seqlens) - 1, rows.shape[-1]))
        is_empty = self.cu_seqlens.diff() == 0
        return rows.masked_fill(is_empty[:, None], 0)
