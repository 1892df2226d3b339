"""Tables of tensors' addresses on their device, for kernels that take many tensors at once."""

from collections.abc import Callable, Sequence

import torch

BLOCK = 1024  # elements of a program: 4 of each tensor to a thread of eight warps


class Tables:
    """What a group's launches read on the device, copied there again when it has changed.

    While a CUDA graph is captured nothing can be copied, unless from pinned memory and again at
    each replay. A capture therefore gets tables of its own, empty, and `fill` fills them behind it.
    """

    def __init__(self):
        self._copies: dict[str, tuple[list, torch.Tensor]] = {}
        self._empty: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._captured: list[torch.Tensor] = []

    def fill(self) -> None:
        """Fill the tables of a capture that has ended; before that its graph must not run."""
        for content, table in self._empty:
            table.copy_(content)
        self._empty.clear()

    def of(self, tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """(table, programs) of the op's `AdamWTensors`.

        table: int64 (weights, 8), the addresses of each weight, gradient, exp_avg, exp_avg_sq,
            rounded copy (0 for none) and step, the number of elements, and a 0.
        programs: int32 (programs, 2), each program's weight and which of its blocks.
        """
        device = tensors.weights[0].device
        sizes = [weight.numel() for weight in tensors.weights]
        rounded = [0 if copy is None else copy.data_ptr() for copy in tensors.rounded]
        columns = [_addresses(part) for part in tensors[:4]]
        columns += [rounded, _addresses(tensors.steps), sizes, [0] * len(sizes)]
        rows = list(zip(*columns, strict=True))
        return (
            self._on(device, "table", rows, torch.tensor),
            self._on(device, "programs", sizes, _programs),
        )

    def _on(self, device: torch.device, name: str, content: list, make: Callable) -> torch.Tensor:
        """`make(content)` on the device."""
        if is_capturing(device):
            made = make(content)
            table = torch.empty_like(made, device=device)
            self._empty.append((made, table))
            self._captured.append(table)  # the graph reads it as long as it lives
            return table
        before, copy = self._copies.get(name, (None, None))
        if before != content or copy is None:
            copy = make(content).to(device, non_blocking=True)
            self._copies[name] = (content, copy)
        return copy


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the device's current stream."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _programs(sizes: Sequence[int]) -> torch.Tensor:
    """int32 (programs, 2): each program's weight, and which of its blocks of BLOCK elements."""
    blocks = (torch.tensor(sizes) + BLOCK - 1) // BLOCK
    weight = torch.repeat_interleave(blocks)
    block = torch.arange(len(weight)) - (blocks.cumsum(0) - blocks)[weight]
    return torch.stack([weight, block], 1).int()
