"""A whole training step as one CUDA graph, which takes one launch in place of thousands."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from spanbert_fast.optim import AdamW

# PyTorch wants a few steps on a side stream before a capture, so that libraries and allocator
# settle.
_WARM_UP_STEPS = 3


class CapturedStep:
    """Forward, backward and optimiser step, captured once and replayed on each batch.

    It works in one process, in fp32 or bf16, with one batch a step. Batches differ only in their
    tensors, whose shapes are fixed (`StaticShapes`). `dropout_seed` is one of these tensors (the
    collator's `dropout_seeds`), so every replay has its own dropout masks.

    Making a CapturedStep leaves the model and the optimiser as they were, except that learning
    rates become tensors. Schedulers of `torch.optim` fill them; setting `group["lr"]` to another
    object has no effect. After a call, each parameter's `.grad` is the (clipped) gradient of that
    batch, in the same memory every time. It may be set to None in between.

    `spanbert_fast.optim.AdamW` clips where it reads the gradients, so `.grad` is not clipped with
    it, and the forward takes the rounded weights that it keeps.

    Args:
        model: a model on a GPU, in the mode in which it will run; its output has a `loss`.
        optimizer: of its parameters, with capturable=True and a state that starts at zeros, such as
            AdamW; None to leave the update to the caller.
        batch: keyword arguments of the model, in the form of all later batches, on any device.
        autocast: makes the context of the forward.
        max_grad_norm: clip the gradients to this norm; None for no clipping.

    Raises:
        ValueError: the model is not on a GPU, or trains without `dropout_seed` in the batch; the
            optimizer is not capturable.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        batch: Mapping[str, Any],
        *,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        max_grad_norm: float | None = None,
    ):
        device = next(model.parameters()).device
        if model.training and "dropout_seed" not in batch:
            raise ValueError(f"batch must hold dropout_seed in training, got {', '.join(batch)}")
        groups = [] if optimizer is None else optimizer.param_groups
        if not all(group.get("capturable") for group in groups):
            raise ValueError("optimizer must have capturable=True in all its groups")
        if device.type != "cuda":
            raise ValueError(f"model must be on a GPU, got one on {device}")
        for group in groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
        self._model, self._optimizer = model, optimizer
        self._autocast, self._max_grad_norm = autocast, max_grad_norm
        self._inputs = {
            name: value.to(device, copy=True) if torch.is_tensor(value) else value
            for name, value in batch.items()
        }
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream), _undone(model, optimizer):
                for _ in range(_WARM_UP_STEPS):
                    self._run()
            torch.cuda.current_stream().wait_stream(stream)
            self._refresh_rounded()
            self._graph = torch.cuda.CUDAGraph()
            of_optimizer = (
                optimizer.capture() if isinstance(optimizer, AdamW) else contextlib.nullcontext()
            )
            with (
                of_optimizer,
                # a data loader's thread may allocate pinned memory meanwhile
                torch.cuda.graph(self._graph, capture_error_mode="thread_local"),
            ):
                self._outputs = self._run()
        self._gradients = [(parameter, parameter.grad) for parameter in model.parameters()]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Train on a batch. The host does not wait for the GPU.

        Args:
            batch: as the first batch in fields and shapes, on any device.

        Returns:
            The tensors of the model's output, with `loss`, detached. The next call overwrites them.

        Raises:
            ValueError: the batch is not like the first one.
        """
        check_alike(batch, self._inputs)
        self._refresh_rounded()
        for name, value in batch.items():
            if torch.is_tensor(value):
                self._inputs[name].copy_(value, non_blocking=True)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._outputs

    def _refresh_rounded(self) -> None:
        """For weights that were changed outside of the graph."""
        if isinstance(self._optimizer, AdamW):
            self._optimizer.refresh_rounded()

    def _run(self) -> dict[str, torch.Tensor]:
        """One step. Gradients start as None, so that each replay of the graph overwrites them."""
        for parameter in self._model.parameters():
            parameter.grad = None
        ours = self._optimizer if isinstance(self._optimizer, AdamW) else None
        with self._autocast(), ours.rounded_weights() if ours else contextlib.nullcontext():
            outputs = self._model(**self._inputs)
        outputs.loss.backward()
        if ours is not None:
            ours.step(max_grad_norm=self._max_grad_norm)
        else:
            if self._max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._max_grad_norm)
            if self._optimizer is not None:
                self._optimizer.step()
        return {name: x.detach() for name, x in outputs.items() if torch.is_tensor(x)}


def check_alike(batch: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Raise ValueError unless a batch has the fields, shapes, dtypes and numbers of the first."""
    if batch.keys() != first.keys():
        raise ValueError(f"batch must hold {', '.join(first)}, got {', '.join(batch)}")
    for name, value in batch.items():
        ours, theirs = (
            f"{x.dtype} {tuple(x.shape)}" if torch.is_tensor(x) else repr(x)
            for x in (value, first[name])
        )
        if ours != theirs:
            raise ValueError(f"batch[{name!r}] must be {theirs} as in the first, got {ours}")


@contextlib.contextmanager
def _undone(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """Undo the steps inside the block: restore parameters, buffers and the optimiser's state in
    place. State that the optimiser creates inside stays, at zeros."""
    tensors = [*chain(model.parameters(), model.buffers())]
    states = {} if optimizer is None else optimizer.state
    with torch.no_grad():
        before = [tensor.clone() for tensor in tensors]
        states_before = {
            parameter: {k: v.clone() for k, v in state.items() if torch.is_tensor(v)}
            for parameter, state in states.items()
        }
    yield
    with torch.no_grad():
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)
        for parameter, state in states.items():
            kept = states_before.get(parameter, {})
            for name, value in state.items():
                if torch.is_tensor(value):
                    value.copy_(kept[name]) if name in kept else value.zero_()
