"""`AdamW`: PyTorch's, whose step on a GPU is one launch for all weights of a group."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from spanbert_fast.ops import adamw as op
from spanbert_fast.ops._address_tables import Tables, is_capturing
from spanbert_fast.ops._rounded import RoundedWeights

__all__ = ["AdamW"]


class AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) in one pass over memory.

        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdamW([weight], lr=0.1)
        >>> weight.sum().backward()
        >>> optimizer.step(max_grad_norm=1.0)
        >>> weight.data
        tensor([0.8990, 0.8990])

    A group whose weights are plain contiguous fp32 tensors on one GPU takes the Triton kernel (by
    construction, not run yet). Any other group, and every step whose gradients a GradScaler has not
    unscaled, takes PyTorch's fused AdamW. The state and `state_dict` are those of torch.optim.AdamW
    with fused=True, so each loads the other's. On a GPU it is capturable: see `CapturedStep`.

    Args:
        params, lr, betas, eps, weight_decay: as of torch.optim.AdamW.
        keep_rounded: also write, in the same pass, bf16 copies of the weights of linear layers. On
            a GPU under autocast the layers take them inside `rounded_weights()`, in training, and
            cast nothing.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        keep_rounded: bool = False,
    ):
        self._tables: list[Tables] = []
        self._in_capture = False
        self._rounded = RoundedWeights() if keep_rounded else None
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "keep_rounded": self._rounded is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        keep_rounded = state.pop("keep_rounded", getattr(self, "_rounded", None) is not None)
        super().__setstate__(state)
        self._tables = [Tables() for _ in self.param_groups]
        self._in_capture = False
        self._rounded = RoundedWeights() if keep_rounded else None
        self._own()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As PyTorch's; a group on a GPU is capturable."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["capturable"] = all(weight.is_cuda for weight in group["params"])
        self._tables.append(Tables())
        self._own()

    def _own(self) -> None:
        if self._rounded is not None:
            self._rounded.own(weight for group in self.param_groups for weight in group["params"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As PyTorch's, of any torch.optim.AdamW without amsgrad and maximize.

        Raises:
            ValueError: it is of another kind.
        """
        groups = []
        for number, group in enumerate(state_dict["param_groups"]):
            for name in ("amsgrad", "maximize"):
                if group.get(name):
                    raise ValueError(f"state_dict must be without {name}, got it in group {number}")
            ours = self.param_groups[min(number, len(self.param_groups) - 1)]
            kept = {name: ours[name] for name in ("foreach", "capturable", "fused")}
            groups.append({**group, **kept})
        super().load_state_dict({**state_dict, "param_groups": groups})

    def rounded_weights(self) -> contextlib.AbstractContextManager[None]:
        """A block in which linear layers take the bf16 copies that this optimiser keeps."""
        return contextlib.nullcontext() if self._rounded is None else self._rounded.used()

    def refresh_rounded(self) -> None:
        """Make those copies again whose weight something else than `step` has changed.

        The layers do it where they take a copy; a CUDA graph does not.
        """
        if self._rounded is not None:
            self._rounded.refresh()

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """A block around `torch.cuda.graph(...)` in which `step` is called; behind it the graph may
        be replayed. `CapturedStep` opens one."""
        self._in_capture = True
        try:
            yield
        finally:
            self._in_capture = False
        for tables in self._tables:
            tables.fill()

    @torch.no_grad()
    def step(  # type: ignore[override]  # PyTorch's does not clip
        self,
        closure: Callable[[], torch.Tensor] | None = None,
        *,
        max_grad_norm: float | None = None,
    ) -> torch.Tensor | None:
        """A step of every weight that has a gradient.

        Args:
            closure: computes the loss again.
            max_grad_norm: scale the gradients down to this norm of them all, if theirs is larger.
                The kernel scales what it reads, and leaves the gradients in memory as they are.

        Returns:
            The closure's loss.

        Raises:
            RuntimeError: a CUDA graph is captured outside of `capture()`.
            ValueError: max_grad_norm with gradients that a GradScaler has not unscaled.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaler = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
        if max_grad_norm is not None and scaler["grad_scale"] is not None:
            raise ValueError(
                "max_grad_norm must be None for gradients that a GradScaler has not unscaled, "
                f"got {max_grad_norm}"
            )
        devices = {weight.device for group in self.param_groups for weight in group["params"]}
        if not self._in_capture and any(map(is_capturing, devices)):
            raise RuntimeError(
                "a CUDA graph must be captured inside of optimizer.capture(), got a step without it"
            )
        factor = None if max_grad_norm is None else self._factor(max_grad_norm)
        for group, tables in zip(self.param_groups, self._tables, strict=True):
            tensors = self._tensors(group)
            beta1, beta2 = group["betas"]
            options = op.AdamWOptions(
                group["lr"], beta1, beta2, group["eps"], group["weight_decay"]
            )
            op.adamw(tensors, options, factor=factor, tables=tables, **scaler)
            if self._rounded is not None:
                self._rounded.written(tensors.weights)
        return loss

    def _factor(self, max_grad_norm: float) -> torch.Tensor:
        """What torch.nn.utils.clip_grad_norm_ multiplies the gradients by, on their device."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        return (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)

    def _tensors(self, group: dict[str, Any]) -> op.AdamWTensors:
        """Of the group's weights that have a gradient; makes the state of new ones."""
        weights = [weight for weight in group["params"] if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {
                    "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
        states = [self.state[weight] for weight in weights]
        return op.AdamWTensors(
            weights,
            [weight.grad for weight in weights],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            [None] * len(weights) if self._rounded is None else self._rounded.kept(weights),
        )
