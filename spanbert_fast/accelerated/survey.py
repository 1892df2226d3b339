"""What `accelerate` would do to a model, module by module, and why not."""

import dataclasses

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from spanbert_fast.accelerated.families import BY_MODELING, FAMILIES, OTHERS
from spanbert_fast.accelerated.packed import Fast
from spanbert_fast.accelerated.registry import fast_class, is_fast

INTERFACE = 'attn_implementation="spanbert_fast"'


@dataclasses.dataclass(frozen=True)
class Finding:
    """One module.

    Attributes:
        name: its name in the model; the model's class for the model itself.
        class_name: its class.
        verdict: "replaced", "kept" (a user's own code, which goes on over what is replaced; or
            transformers' code of which nothing would be gained), "unknown" (a model of
            transformers of another family, which stays as it is) or "refused".
        reason: of what is not replaced.
    """

    name: str
    class_name: str
    verdict: str
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Survey:
    """What `accelerate(model, dry_run=True)` returns; as text, a table.

    Attributes:
        findings: the modules that are of a family, in the model's order.
        error: why nothing of the model can be accelerated; None where it can.
    """

    findings: tuple[Finding, ...]
    error: str | None

    def __str__(self) -> str:
        lines = []
        for finding in self.findings:
            why = f": {finding.reason}" if finding.reason else ""
            lines.append(f"{finding.verdict:<10}{finding.name} ({finding.class_name}){why}")
        lines.append(self.error or "accelerate(model) would change these, and nothing else")
        return "\n".join(lines)


def survey(model: nn.Module) -> Survey:
    """Look at every module of `model`; nothing is changed."""
    findings = []
    for name, module in model.named_modules():
        finding = _find(name or type(model).__name__, module)
        if finding is not None:
            findings.append(finding)
    findings += _unknown_encoders(model)
    refused = next((f.reason for f in findings if f.verdict == "refused"), None)
    if refused is None and not any(f.verdict == "replaced" for f in findings):
        refused = _nothing_found(model)
    return Survey(tuple(findings), refused)


def _nothing_found(model: nn.Module) -> str:
    known = ", ".join(family.title for family in FAMILIES)
    encoders = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    encoder = type(encoders[-1] if encoders else model).__name__
    of = "" if encoder == type(model).__name__ else f" with {encoder}"
    return (
        f"model must hold an encoder of {known}, got {type(model).__name__}{of}, which is none "
        f"({INTERFACE} takes the attention of other encoders that use transformers' attention "
        "interface)"
    )


def _unknown_encoders(model: nn.Module) -> list[Finding]:
    """The outermost models of transformers in `model` that hold nothing of any family."""
    found: list[Finding] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer.name}.") for outer in found)
        if inside or not isinstance(module, PreTrainedModel):
            continue
        if not any(_find("", part) for part in module.modules()):
            kind, reason = type(module).__name__, "of no family that accelerate knows, it stays"
            found.append(Finding(name or kind, kind, "unknown", reason))
    return found


def _find(name: str, module: nn.Module) -> Finding | None:
    kind = type(module).__name__
    for base in type(module).__mro__:
        if base.__module__ in OTHERS and isinstance(module, PreTrainedModel):
            return _refused(
                name,
                kind,
                f"{name} must be of a family that accelerate knows, got {kind}: "
                f"{OTHERS[base.__module__]}",
            )
        family = BY_MODELING.get(base.__module__)
        if family is not None and base.__name__.endswith("CrossAttention"):
            return _refused(name, kind, f"{name} must not be there: cross-attention is not covered")
        if (ours := fast_class(base)) is not None:
            return _find_part(name, module, base, ours)
        if family is not None and isinstance(module, PreTrainedModel):
            return Finding(name, kind, "kept", "transformers' code over what is accelerated")
    return None


def _find_part(name: str, module: nn.Module, stock: type[nn.Module], ours: type[Fast]) -> Finding:
    """Of a module that is of the class `stock`, or of a subclass of it."""
    kind = type(module).__name__
    if type(module) is not stock and not is_fast(type(module)):
        if isinstance(module, PreTrainedModel):
            return Finding(name, kind, "kept", "a subclass: its own code over what is accelerated")
        return _refused(
            name,
            kind,
            f"{name} must be transformers' own {stock.__name__}, got its subclass {kind}; "
            "accelerate comes before what wraps modules",
        )
    reason = _why_not(name, module, ours)
    return Finding(name, kind, "replaced") if reason is None else _refused(name, kind, reason)


def _refused(name: str, kind: str, reason: str) -> Finding:
    return Finding(name, kind, "refused", reason)


def _why_not(name: str, module: nn.Module, ours: type[Fast]) -> str | None:
    """Why the packed path cannot compute `module`; None where it can."""
    if "forward" in vars(module):
        return (
            f"{name} must not have a forward of its own on the instance; accelerate comes before "
            "what patches modules, such as Accelerator.prepare"
        )
    if ours.gelu_name is not None:
        activation = type(getattr(module, ours.gelu_name))
        if activation is not GELUActivation:
            got = activation.__name__
            return f'{name} must have hidden_act "gelu" (the erf form), got {got}'
    for part in ours.parts_of(module):
        child = getattr(module, part)
        if not any(fast_class(base) for base in type(child).__mro__):
            got = type(child).__name__
            return f"{name}.{part} must be transformers' own module, got {got}"
    dropout = getattr(module, "dropout", None)
    if type(dropout) is nn.Dropout and dropout.p != 0 and not 1 / 512 <= dropout.p < 511 / 512:
        return f"{name}.dropout must be 0 or in [1/512, 511/512), got {dropout.p}"
    config = getattr(module, "config", None)
    return None if config is None else _why_not_config(name, config)


def _why_not_config(name: str, config) -> str | None:
    decodes = getattr(config, "is_decoder", False)
    crosses = getattr(config, "add_cross_attention", False)
    if decodes or crosses:
        return (
            f"{name} must be an encoder, got is_decoder={decodes} and add_cross_attention={crosses}"
        )
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        return f'{name} must have absolute positions, got "{positions}"'
    return None
