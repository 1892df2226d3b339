"""The gradients of an op: an autograd.Function around its registered kernels.

PyTorch's `register_autograd` could register the gradients with the kernels, but a call through it
costs four times as much.
"""

import inspect
from collections.abc import Callable, Sequence

import torch

from spanbert_fast.ops._register import Kernel, op_of


def differentiable(
    inputs: type,
    forward: Kernel,
    backward: Kernel,
    gradients: Sequence[str],
    *,
    results: int = 1,
    saves_result: bool = False,
) -> Callable:
    """The op of a forward and a backward kernel, as a function of an `inputs` NamedTuple.

    Args:
        forward: takes the inputs' fields; returns `results` results, of which only the first is
            differentiable, then what the backward needs.
        backward: takes the first result's gradient, the inputs' fields and the forward's outputs
            after the results (with `saves_result` all outputs); returns the gradients.
        gradients: the fields that have a gradient, in the backward's order. The gradient of a field
            that is None is dropped.
    """
    hints = inspect.get_annotations(inputs)
    names = list(hints)
    is_tensor = [hints[name] in (torch.Tensor, torch.Tensor | None) for name in names]
    places = [names.index(name) for name in gradients]
    first_saved = 0 if saves_result else results

    def run(arguments: tuple) -> tuple:
        outputs = forward(*arguments)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def result_of(outputs):
        return outputs[0] if results == 1 else outputs[:results]

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            return backward(*arguments)

        @staticmethod
        def backward(ctx, *_):
            name = op_of(backward.op.name().removeprefix("spanbert_fast::"))
            raise RuntimeError(
                f"{name} must be differentiated once, got a second derivative (of an accelerated "
                "model, spanbert_fast.decelerate brings back one that has it)"
            )

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            outputs = run(arguments)
            tensors = [a for a, saved in zip(arguments, is_tensor, strict=True) if saved]
            ctx.save_for_backward(*tensors, *outputs[first_saved:])
            ctx.others = [a for a, saved in zip(arguments, is_tensor, strict=True) if not saved]
            ctx.set_materialize_grads(False)
            if results > 1:
                ctx.mark_non_differentiable(*outputs[1:results])
            return result_of(outputs)

        @staticmethod
        def backward(ctx, dresult, *_):
            found = [None] * len(names)
            if dresult is None:
                return tuple(found)
            # read only once: activation checkpointing cannot unpack a saved tensor twice
            saved, others = list(ctx.saved_tensors), list(ctx.others)
            arguments = [(saved if kept else others).pop(0) for kept in is_tensor]
            # with create_graph the gradients are functions of the inputs, not constants
            differentiate = Backward.apply if torch.is_grad_enabled() else backward
            made = differentiate(dresult, *arguments, *saved)
            for place, gradient in zip(places, made, strict=True):
                found[place] = None if arguments[place] is None else gradient
            return tuple(found)

    def call(arguments):
        leaves = (arguments[place] for place in places)
        if torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in leaves):
            return Function.apply(*arguments)
        # torch.compile mistakes a Function of two inputs for one without a ctx, so not the Function
        # here
        return result_of(run(arguments))

    return call
