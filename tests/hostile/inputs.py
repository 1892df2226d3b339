"""Valid inputs of every op: of random sizes, or of sizes at which kernels change their path."""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from op_cases import EPS, SEED, Case, IndexInputs, PadInputs
from spanbert_fast._extension import _C
from spanbert_fast.ops._attention_composite import AttentionInputs
from spanbert_fast.ops._precision import product_dtype
from spanbert_fast.ops.bias_gelu import BiasGeluInputs
from spanbert_fast.ops.dropout_add_layer_norm import NormInputs
from spanbert_fast.ops.embedding_layer_norm import EmbeddingInputs
from spanbert_fast.ops.linear_cross_entropy import LossInputs
from spanbert_fast.ops.sample_spans import SpanText, span_capacity
from spanbert_fast.ops.span_boundary_gather import GatherInputs
from spanbert_fast.ops.span_options import SpanOptions

# About the widths of vectors (4 to 16 floats, 8 to 32 halves) and of tiles.
WIDTHS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 200, 768)
LENGTHS = (1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 250)


class Sizes(NamedTuple):
    """The sizes of an input; each op uses some of them."""

    rows: int
    width: int
    lengths: tuple[int, ...]
    heads: int
    table: int
    plain: bool  # without optional arguments

    @classmethod
    def drawn(cls, draw: random.Random) -> "Sizes":
        """Random small sizes, sometimes 0."""
        lengths = [draw.choice((0, 1, draw.choice(LENGTHS))) for _ in range(draw.randint(0, 4))]
        return cls(
            draw.choice((0, 1, 2, draw.randint(3, 150))), draw.choice(WIDTHS), tuple(lengths),
            draw.randint(1, 3), draw.choice((1, 2, draw.randint(3, 900))), draw.random() < 0.3,
        )  # fmt: skip


class Make:
    """Makes inputs of one dtype."""

    def __init__(self, dtype: torch.dtype, sizes: Sizes, draw: random.Random):
        self.dtype, self.sizes, self.draw = dtype, sizes, draw
        self.generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
        self.dropped = not sizes.plain and draw.random() < 0.5

    def floats(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def ids(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=self.generator)

    def offsets(self, lengths) -> torch.Tensor:
        return torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)

    def dropout(self) -> tuple[torch.Tensor | None, int, int]:
        return (SEED, self.draw.choice((1, 26, 128, 255)), 3) if self.dropped else (None, 0, 0)

    def bias_gelu(self) -> Case:
        s = self.sizes
        return Case("bias_gelu", BiasGeluInputs(self.floats(s.rows, s.width), self.floats(s.width)))

    def dropout_add_layer_norm(self) -> Case:
        (seed, threshold, site), s = self.dropout(), self.sizes
        x, residual, weight, bias = (
            self.floats(s.rows, s.width), self.floats(s.rows, s.width), self.floats(s.width),
            self.floats(s.width),
        )  # fmt: skip
        x_bias = None if s.plain else self.floats(s.width)
        rows = self.ids(1 << 20, s.rows) if self.dropped and self.draw.random() < 0.5 else None
        inputs = NormInputs(x, residual, weight, bias, x_bias, seed, rows, threshold, site, EPS)
        return Case("dropout_add_layer_norm", inputs)

    def embedding_layer_norm(self) -> Case:
        (seed, threshold, site), s = self.dropout(), self.sizes
        of_rows = s.plain and self.draw.random() < 0.5
        words = self.floats(s.rows if of_rows else s.table, s.width)
        input_ids = None if of_rows else self.ids(s.table, s.rows)
        types = None if s.plain else self.floats(2, s.width)
        type_ids = None if s.plain else self.ids(2, s.rows)
        inputs = EmbeddingInputs(
            words, input_ids, self.floats(512, s.width), self.ids(512, s.rows), types, type_ids,
            self.floats(s.width), self.floats(s.width), seed, threshold, site,
            self.draw.choice((-1, 0)), EPS, self.draw.choice((self.dtype, torch.float32)),
        )  # fmt: skip
        if self.dtype == torch.float64:
            inputs = inputs._replace(out_dtype=torch.float64)
        return Case("embedding_layer_norm", inputs)

    def varlen_attention(self) -> Case:
        s = self.sizes
        shape = (sum(s.lengths), s.heads, min(s.width, 256))
        q, k, v = (self.floats(*shape) for _ in range(3))
        longest = max(s.lengths, default=0)
        cu_seqlens, scale = self.offsets(s.lengths), shape[2] ** -0.5
        inputs = AttentionInputs(q, k, v, cu_seqlens, longest, scale, *self.dropout())
        return Case("varlen_attention", inputs, ("cu_seqlens",))

    def linear_cross_entropy(self) -> Case:
        s = self.sizes
        wide = product_dtype(self.dtype, torch.device("cpu"))
        compiled = _C is not None and self.dtype != torch.float64
        kept = self.draw.choice((0, s.table // 256 * 256, s.table)) if compiled else 0
        first = self.draw.randint(0, s.rows)
        inputs = LossInputs(
            self.floats(s.rows, s.width).to(wide), self.floats(s.table, s.width),
            self.floats(2, s.table), self.ids(s.table, s.rows), [first, s.rows - first],
            not s.plain, kept,
        )  # fmt: skip
        return Case("linear_cross_entropy", inputs)

    def span_boundary_gather(self) -> Case:
        s = self.sizes
        lengths = [self.draw.randint(0, 20) for _ in range(min(s.rows, 40))]
        inputs = GatherInputs(
            self.floats(len(lengths), s.width), self.floats(20, s.width), self.offsets(lengths),
            sum(lengths), self.floats(s.width), self.floats(s.width), EPS,
        )  # fmt: skip
        return Case("span_boundary_gather", inputs, ("cu_span_lengths",))

    def _tokens(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        s = self.sizes
        rows = s.rows + self.draw.randint(0, 9)
        indices = torch.randperm(rows, generator=self.generator)[: s.rows]
        shape = self.draw.choice(((), (s.width,), (3, s.width)))
        return shape, indices, rows

    def unpad(self) -> Case:
        shape, indices, rows = self._tokens()
        return Case("unpad", IndexInputs(self.floats(rows, *shape), indices), ("indices",))

    def pad(self) -> Case:
        shape, indices, rows = self._tokens()
        inputs = PadInputs(self.floats(len(indices), *shape), indices, rows)
        return Case("pad", inputs, ("indices",))

    def sample_spans(self) -> Case:
        lengths = [length for length in self.sizes.lengths if length]
        tokens, draw = sum(lengths), self.draw
        bounds = self.offsets(lengths)
        special = torch.rand(tokens, generator=self.generator) < 0.1
        special[bounds[:-1].long()] = False  # one maskable token at least
        given = [first for first in range(tokens) if not special[first] and draw.random() < 0.1]
        share = draw.choice((0.0, 0.4))
        law = SpanOptions(
            mask_ratio=draw.choice((0.15, 0.5, 1.0)), replacement=draw.choice(("span", "token")),
            scheme={"given": share, "geometric": 1 - share}, unbiased_edges=draw.random() < 0.5,
            complete_words=draw.random() < 0.3, max_span_targets=draw.choice((1, 20)),
        ).law()  # fmt: skip
        text = SpanText(
            self.ids(900, tokens), bounds, torch.rand(tokens, generator=self.generator) < 0.7,
            None if self.sizes.plain and not given else special,
            torch.tensor([[g, g] for g in given], dtype=torch.int64).view(-1, 2) if share else None,
            self.ids(900, draw.randint(1, 9)), self.ids(1 << 40, len(lengths)),
        )  # fmt: skip
        flat = (*text, 11, 4, *law, span_capacity(law, tokens, len(lengths)))
        fields = (*SpanText._fields, *(f"number{i}" for i in range(len(flat) - len(text))))
        inputs = NamedTuple("SpanInputs", [(name, object) for name in fields])(*flat)
        return Case("sample_spans", inputs, ("cu_seqlens", "given_spans", "special_mask"))


OPS: dict[str, Callable[[Make], Case]] = {
    name: getattr(Make, name)
    for name in (
        "bias_gelu", "dropout_add_layer_norm", "embedding_layer_norm", "linear_cross_entropy",
        "pad", "sample_spans", "span_boundary_gather", "unpad", "varlen_attention",
    )
}  # fmt: skip


def chosen(dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """(description, case): every op at sizes around those of vectors, tiles, blocks and tasks."""
    draw = random.Random(1)
    rows_of = dict(zip(WIDTHS, (1, 5, 64, 65, 129, 2, 3, 17, 300, 33, 4, 9, 70), strict=False))
    for width in WIDTHS:
        sizes = Sizes(rows_of.get(width, 6), width, (16, 0, 37, 1), 2, 300, False)
        for name in [name for name in OPS if name != "sample_spans"]:
            for plain in (False, True):
                case = OPS[name](Make(dtype, sizes._replace(plain=plain), draw))
                yield f"{name}, width {width}", case
    # attention: one sequence of each length; parts of a sequence's queries and keys
    for length in (*LENGTHS, 513, 2100):
        for width in (64, 80) if length < 500 else (64,):
            sizes = Sizes(0, width, (length,), 1, 1, length % 2 == 0)
            case = Make(dtype, sizes, draw).varlen_attention()
            yield f"varlen_attention, length {length}, head_dim {width}", case
    # the loss: blocks of columns, and more rows than a task takes
    for rows, table in ((1, 1), (3, 255), (5, 256), (70, 257), (40, 2049), (4100, 40), (9, 28996)):
        sizes = Sizes(rows, 24, (), 1, table, rows % 2 == 0)
        yield (
            f"linear_cross_entropy, {rows} rows of {table}",
            Make(dtype, sizes, draw).linear_cross_entropy(),
        )
    # results that come from the store of large memory; more rows than one task has
    for name in ("bias_gelu", "dropout_add_layer_norm", "embedding_layer_norm"):
        sizes = Sizes(1100, 768, (), 1, 1500, False)
        yield f"{name}, 1100 rows", OPS[name](Make(dtype, sizes, draw))
    for length in LENGTHS:
        sizes = Sizes(0, 1, (length, 1, 3 * length), 1, 1, False)
        yield f"sample_spans, length {length}", Make(dtype, sizes, draw).sample_spans()
