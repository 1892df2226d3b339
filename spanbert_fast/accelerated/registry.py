"""Accelerated classes, made from the rows of `families` when they are first needed."""

import functools
import importlib
import types
from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from spanbert_fast.accelerated.families import BY_MODELING, FAMILIES, Family
from spanbert_fast.accelerated.packed import Fast, signature_of


def fast_class(theirs: type[nn.Module]) -> type[Fast] | None:
    """The accelerated subclass of one of transformers' classes; None where it has none."""
    family = BY_MODELING.get(theirs.__module__)
    if family is None or theirs.__name__ not in family.classes:
        return None
    return _made(theirs, family)  # type: ignore[arg-type]  # mypy looks at an instance's __hash__


def is_fast(kind: type[nn.Module]) -> bool:
    """Whether `fast_class` made it; a subclass of what it made is not."""
    return "stock" in vars(kind) and issubclass(kind, Fast)


def make_fast(module: nn.Module) -> None:
    """Give every submodule of one of transformers' classes (not of a subclass) ours, in place.

    Ours have no state of their own: an instance changes from one to the other by its class alone,
    and parameters, hooks and names stay where they are.
    """
    for part in module.modules():
        if ours := fast_class(type(part)):
            part.__class__ = ours


def classes_of(name: str) -> Callable[[str], type[Fast]]:
    """`__getattr__` of the module `spanbert_fast.accelerated.NAME`, by which pickle finds classes
    there."""
    family = next(family for family in FAMILIES if family.name == name)

    def __getattr__(attribute: str) -> type[Fast]:  # noqa: N807
        if attribute in family.classes:
            theirs = getattr(importlib.import_module(family.modeling), attribute, None)
            if theirs is not None:
                return _made(theirs, family)
        raise AttributeError(f"{family.title} has no accelerated {attribute!r}")

    return __getattr__


@functools.cache
def _made(theirs: type[nn.Module], family: Family) -> type[Fast]:
    # transformers asks a class's module, by `set_attn_implementation` for one
    importlib.import_module(f"spanbert_fast.accelerated.{family.name}")
    mixin = family.classes[theirs.__name__]
    signature, positional = signature_of(theirs)
    # a function of its own for each class, so that each has transformers' signature
    forward = types.FunctionType(
        mixin.forward.__code__,
        mixin.forward.__globals__,
        "forward",
        mixin.forward.__defaults__,
        mixin.forward.__closure__,
    )
    functools.update_wrapper(forward, mixin.forward)
    forward.__kwdefaults__ = mixin.forward.__kwdefaults__
    vars(forward)["__signature__"] = signature

    @functools.wraps(theirs.__init__)
    def __init__(self, *arguments, **named):  # noqa: N807
        theirs.__init__(self, *arguments, **named)
        make_fast(self)

    made = type(
        theirs.__name__,
        (mixin, theirs),
        {
            "__module__": f"spanbert_fast.accelerated.{family.name}",
            "__doc__": f"transformers' {theirs.__name__} on packed tokens. {mixin.__doc__}",
            "__init__": __init__,
            "forward": forward,
            "stock": theirs,
            "row": family,
            "_positional": positional,
        },
    )
    if issubclass(made, PreTrainedModel):
        # what transformers' forward can record it keeps by class, noted by the constructor, which
        # a model that was given its class later, or unpickled with it, has never gone through
        dict.__setitem__(_CAN_RECORD_REGISTRY, str(made), made._can_record_outputs)
    return made
