"""Every Triton kernel as its launcher would have it compiled, on a machine without a GPU.

The launchers run on tensors of the meta device, under a driver that replaces a chip's. Triton binds
and specialises the arguments as for a real launch, and a hook records what would be compiled. So a
case cannot differ from its launcher, and a launcher that waited for the device would fail here.

It needs a process of its own, in which the driver stays replaced, with TRITON_INTERPRET off.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from spanbert_fast.kernels import adamw as adamw_kernels
from spanbert_fast.kernels import tile_config
from spanbert_fast.kernels.antecedent_loss import antecedent_loss_bwd, antecedent_loss_fwd
from spanbert_fast.kernels.antecedent_top_k import antecedent_top_k_fwd
from spanbert_fast.kernels.bias_gelu import bias_gelu_bwd, bias_gelu_fwd
from spanbert_fast.kernels.dropout_add_layer_norm import (
    dropout_add_layer_norm_bwd,
    dropout_add_layer_norm_fwd,
)
from spanbert_fast.kernels.embedding_layer_norm import (
    embedding_layer_norm_bwd,
    embedding_layer_norm_fwd,
)
from spanbert_fast.kernels.linear_cross_entropy import (
    linear_cross_entropy_bwd,
    linear_cross_entropy_fwd,
)
from spanbert_fast.kernels.padding import pad_fwd, unpad_fwd
from spanbert_fast.kernels.span_boundary_gather import (
    span_boundary_gather_bwd,
    span_boundary_gather_fwd,
)
from spanbert_fast.kernels.span_representation import (
    span_representation_bwd,
    span_representation_fwd,
)
from spanbert_fast.kernels.varlen_attention import varlen_attention_bwd, varlen_attention_fwd
from spanbert_fast.ops._address_tables import BLOCK, Tables
from spanbert_fast.ops._attention_composite import AttentionInputs
from spanbert_fast.ops.adamw import AdamWOptions, AdamWTensors
from spanbert_fast.ops.antecedent_loss import LossInputs as AntecedentInputs
from spanbert_fast.ops.antecedent_top_k import TopKInputs
from spanbert_fast.ops.bias_gelu import BiasGeluInputs
from spanbert_fast.ops.dropout_add_layer_norm import NormInputs
from spanbert_fast.ops.embedding_layer_norm import EmbeddingInputs
from spanbert_fast.ops.linear_cross_entropy import LossInputs
from spanbert_fast.ops.span_boundary_gather import GatherInputs
from spanbert_fast.ops.span_representation import SpanInputs

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Triton specialises for an int that is a multiple of 16, as a model's width is, unlike its rows.
ROWS, SPANS, VOCAB = 4001, 1001, 28_996
# 1000 is no multiple of a block; the others reach each row of the tables for whole rows.
WIDTHS = (256, 512, 768, 1000, 1024, 2048, 4096, 8192)
_OPTIONS = ("num_warps", "num_ctas", "num_stages", "maxnreg")

Launches = Iterator[tuple[str, Callable[[], object]]]


@dataclass(frozen=True, eq=False)
class Case:
    """A kernel to compile: the arguments of Triton's compiler, and the launch that asked for it."""

    op: str
    launch: str
    dtype: str
    chip: int
    function: Any = field(repr=False)
    signature: dict[str, str] = field(repr=False)
    constexprs: dict = field(repr=False)
    attributes: dict = field(repr=False)
    options: dict[str, Any] = field(repr=False)

    @property
    def kernel(self) -> str:
        """The kernel's name without the marks of a private function."""
        return self.function.__name__.strip("_").removesuffix("_kernel")

    @property
    def blocks(self) -> dict[str, int]:
        """The sizes among the constexprs, by name."""
        named = {self.function.arg_names[at[0]]: value for at, value in self.constexprs.items()}
        return {n: v for n, v in named.items() if type(v) is int}

    @property
    def key(self) -> str:
        """Equal for launches that share a compiled kernel."""
        parts = (self.signature, self.constexprs, self.attributes, self.options)
        return f"{self.chip} {self.function.__name__} {parts}"


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


_ids = partial(_empty, dtype=torch.int64)


def _adamw(dtype: torch.dtype) -> Launches:
    weights = [_empty(ROWS, 1024), _empty(1024)]
    tensors = AdamWTensors(*[weights] * 4, [_empty(), _empty()], [None, None])
    for what, factor in (("plain", None), ("clipped", _empty())):
        yield (
            what,
            partial(adamw_kernels.adamw, *Tables().of(tensors), AdamWOptions(), factor, BLOCK),
        )


def _bias_gelu(dtype: torch.dtype) -> Launches:
    for width in (1000, 3072, 4096):
        inputs = BiasGeluInputs(_empty(ROWS, width, dtype=dtype), _empty(width, dtype=dtype))
        yield f"forward, width {width}", partial(bias_gelu_fwd, inputs)
        yield f"backward, width {width}", partial(bias_gelu_bwd, inputs.x, inputs)


def _dropout_add_layer_norm(dtype: torch.dtype) -> Launches:
    seed, numbers, statistic = _ids(), _ids(ROWS), _empty(ROWS, 1)
    for width in WIDTHS:
        x, weight = _empty(ROWS, width, dtype=dtype), _empty(width, dtype=dtype)
        for what, x_bias, rows, threshold in (
            ("plain", None, None, 0),
            ("dropout", None, None, 26),
            ("dropout, bias, row numbers", weight, numbers, 26),
        ):
            inputs = NormInputs(x, x, weight, weight, x_bias, seed, rows, threshold, 3, 1e-12)
            yield (
                f"forward, width {width}, {what}",
                partial(dropout_add_layer_norm_fwd, inputs),
            )
            yield (
                f"backward, width {width}, {what}",
                partial(dropout_add_layer_norm_bwd, x, inputs, statistic, statistic),
            )


def _embedding_layer_norm(dtype: torch.dtype) -> Launches:
    seed, ids, statistic = _ids(), _ids(ROWS), _empty(ROWS, 1)
    for width in WIDTHS:
        word, position, token_type, x = (
            _empty(n, width, dtype=dtype) for n in (VOCAB, 512, 2, ROWS)
        )
        weight = _empty(width, dtype=dtype)
        for what, input_ids, words, threshold in (
            ("plain", ids, word, 0),
            ("dropout", ids, word, 26),
            ("embeddings, dropout", None, x, 26),
        ):
            inputs = EmbeddingInputs(
                words, input_ids, position, ids, token_type, ids, weight, weight, seed,
                threshold, 0, 0, 1e-12, dtype,
            )  # fmt: skip
            yield f"forward, width {width}, {what}", partial(embedding_layer_norm_fwd, inputs)
            yield (
                f"backward, width {width}, {what}",
                partial(embedding_layer_norm_bwd, x, inputs, statistic, statistic),
            )


def _linear_cross_entropy(dtype: torch.dtype) -> Launches:
    groups = [ROWS - SPANS, SPANS]
    targets, losses, lse = _ids(ROWS), _empty(ROWS), _empty(2, ROWS)
    bias, kept = _empty(2, VOCAB, dtype=dtype), _empty(ROWS, 0, dtype=dtype)
    for width in (768, 1000, 1024):
        x, weight = _empty(ROWS, width, dtype=dtype), _empty(VOCAB, width, dtype=dtype)
        for predictions in (False, True):
            inputs = LossInputs(x, weight, bias, targets, groups, predictions, 0)
            yield (
                f"forward, width {width}" + ", predictions" * predictions,
                partial(linear_cross_entropy_fwd, inputs),
            )
        yield (
            f"backward, width {width}",
            partial(linear_cross_entropy_bwd, losses, inputs, lse, kept),
        )


def _padding(dtype: torch.dtype) -> Launches:
    x, indices = _empty(ROWS, 1024, dtype=dtype), _ids(SPANS)
    yield "gather", partial(unpad_fwd, x, indices)
    yield "scatter", partial(pad_fwd, _empty(SPANS, 1024, dtype=dtype), indices, ROWS)


def _span_boundary_gather(dtype: torch.dtype) -> Launches:
    cu_span_lengths, statistic = _empty(SPANS + 1, dtype=torch.int32), _empty(ROWS, 1)
    for width in WIDTHS:
        spans, places, dy = (_empty(n, width, dtype=dtype) for n in (SPANS, 20, ROWS))
        weight = _empty(width, dtype=dtype)
        inputs = GatherInputs(spans, places, cu_span_lengths, ROWS, weight, weight, 1e-12)
        yield f"forward, width {width}", partial(span_boundary_gather_fwd, inputs)
        yield (
            f"backward, width {width}",
            partial(span_boundary_gather_bwd, dy, inputs, statistic, statistic),
        )


def _antecedent_loss(dtype: torch.dtype) -> Launches:
    for width in (1000, 1536):
        inputs = _pairs(dtype, width)
        gold = AntecedentInputs(*inputs[:4], _ids(ROWS), inputs[4])
        one = _empty(ROWS)
        yield f"forward, width {width}", partial(antecedent_loss_fwd, gold)
        yield f"backward, width {width}", partial(antecedent_loss_bwd, one, gold, one, one)


def _antecedent_top_k(dtype: torch.dtype) -> Launches:
    for k in (1, 50):
        yield f"forward, k {k}", partial(antecedent_top_k_fwd, TopKInputs(*_pairs(dtype, 1536), k))


def _pairs(dtype: torch.dtype, width: int) -> tuple[torch.Tensor, ...]:
    queries = _empty(ROWS, width, dtype=dtype)
    scores = (_empty(ROWS), _empty(ROWS, 10))
    return (queries, queries, *scores, _empty(9, dtype=torch.int32))


def _span_representation(dtype: torch.dtype) -> Launches:
    x, logits, index = _empty(ROWS, 768, dtype=dtype), _empty(ROWS), _ids(SPANS)
    for what, inner, width in (("boundaries", (None, None), 1536), ("head", (x, logits), 2304)):
        inputs = SpanInputs(x, x, *inner, index, index)
        y = _empty(SPANS, width, dtype=dtype)
        yield f"forward, {what}", partial(span_representation_fwd, inputs)
        yield (
            f"backward, {what}",
            partial(
                span_representation_bwd, y, inputs, y, _empty(0 if inner[0] is None else SPANS)
            ),
        )


def _varlen_attention(dtype: torch.dtype) -> Launches:
    cu_seqlens, seed = _empty(65, dtype=torch.int32), _ids()
    for head_dim in (32, 64, 96, 128):
        # enough tokens for a program to each sequence's head
        x, lse = _empty(8 * ROWS, 12, head_dim, dtype=dtype), _empty(8 * ROWS, 12)
        for max_seqlen, threshold in itertools.product((64, 128, 512, 1024), (0, 26)):
            inputs = AttentionInputs(
                x, x, x, cu_seqlens, max_seqlen, head_dim**-0.5, seed, threshold, 3
            )
            what = f"heads of {head_dim}, {max_seqlen} tokens" + ", dropout" * (threshold > 0)
            yield f"forward, {what}", partial(varlen_attention_fwd, inputs)
            yield f"backward, {what}", partial(varlen_attention_bwd, x, inputs, x, lse)


# op -> its launches of one dtype; a new op adds one line here
OPS: dict[str, Callable[[torch.dtype], Launches]] = {
    "adamw": _adamw,
    "antecedent_loss": _antecedent_loss,
    "antecedent_top_k": _antecedent_top_k,
    "bias_gelu": _bias_gelu,
    "dropout_add_layer_norm": _dropout_add_layer_norm,
    "embedding_layer_norm": _embedding_layer_norm,
    "linear_cross_entropy": _linear_cross_entropy,
    "padding": _padding,
    "span_boundary_gather": _span_boundary_gather,
    "span_representation": _span_representation,
    "varlen_attention": _varlen_attention,
}


def stand_in(chip: int) -> None:
    """Let Triton compile as if there were a GPU with this chip; kernels cannot be run."""
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET must be off where kernels are compiled")
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: chip,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", chip, 32),
        )
    )


def record(chip: int, launch: Callable[[], object]) -> tuple[list[dict], list[tuple]]:
    """Run a launcher on meta tensors: (what would be compiled, (kernel, tile) that it asked for).

    Raises:
        what the launcher raises, for example if it reads a value of the device.
    """
    compiled: list[dict] = []
    tiles: list[tuple] = []
    choose = tile_config.tile

    def hook(*, fn, compile, **_) -> bool:
        options = json.loads(compile["specialization_data"])["options"]
        compiled.append(
            {
                "function": fn.jit_function,
                "signature": compile["signature"],
                "constexprs": compile["constants"],
                "attributes": compile["configs"][0],
                "options": {name: options[name] for name in _OPTIONS},
            }
        )
        return True  # nothing is compiled or launched

    def chosen(kernel: str, arch: int, **facts: int) -> tile_config.Tile:
        tiles.append((kernel, choose(kernel, arch, **facts)))
        return tiles[-1][1]

    stand_in(chip)
    with (
        mock.patch.object(tile_config, "chip_of", lambda device: chip),
        mock.patch.object(tile_config, "tile", chosen),
        knobs.runtime.scope(),
    ):
        knobs.runtime.jit_cache_hook = hook
        launch()
    return compiled, tiles


def cases(
    chip: int,
    ops: Iterable[str] = OPS,
    dtypes: Iterable[str] = DTYPES,
    only: Callable[[str], bool] = lambda launch: True,
) -> tuple[list[Case], list[tuple]]:
    """Every kernel that the launches ask for, each once, and the (kernel, tile) that they took.

    Args:
        only: the launches to record, by their description.
    """
    found: dict[str, Case] = {}
    taken: list[tuple] = []
    for op, dtype in itertools.product(ops, dtypes):
        for launch, run in OPS[op](DTYPES[dtype]):
            if only(launch):
                compiled, tiles = record(chip, run)
                taken += tiles
                for parts in compiled:
                    case = Case(op, launch, dtype, chip, **parts)
                    found.setdefault(case.key, case)
    return list(found.values()), taken
