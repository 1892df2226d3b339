#!/usr/bin/env python
"""Draws the site's pictures: python docs/drawings/draw.py writes the SVG files beside it."""

from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
FONT = "font-family='sans-serif' font-size='{size}' fill='#222'"
PLAIN, OP, OURS, QUIET = "#ffffff", "#dbe9f6", "#fde8c8", "#eeeeee"


class Picture:
    """An SVG picture of a given size, on white."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.parts = width, height, [f"<title>{escape(title)}</title>"]
        self.parts.append(
            "<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' "
            "markerHeight='7' orient='auto'><path d='M0 0 8 4 0 8z' fill='#444'/></marker></defs>"
        )
        self.parts.append(f"<rect width='{width}' height='{height}' fill='#fff'/>")

    def rect(self, x, y, w, h, fill=PLAIN, stroke="#444", dashed=False) -> None:
        dash = " stroke-dasharray='4 3'" if dashed else ""
        self.parts.append(
            f"<rect x='{x}' y='{y}' width='{w}' height='{h}' rx='3' fill='{fill}' "
            f"stroke='{stroke}'{dash}/>"
        )

    def text(self, x, y, words: str, size=13, anchor="start", bold=False) -> None:
        weight = " font-weight='bold'" if bold else ""
        self.parts.append(
            f"<text x='{x}' y='{y}' text-anchor='{anchor}' {FONT.format(size=size)}{weight}>"
            f"{escape(words)}</text>"
        )

    def box(self, x, y, w, h, *lines: str, fill=PLAIN, size=13, dashed=False) -> None:
        """A box with centred lines; the first is bold where there are several."""
        self.rect(x, y, w, h, fill, dashed=dashed)
        step = size + 4
        first = y + h / 2 - (len(lines) - 1) * step / 2 + size * 0.35
        for i, line in enumerate(lines):
            bold = i == 0 and len(lines) > 1
            self.text(x + w / 2, round(first + i * step, 1), line, size, "middle", bold)

    def arrow(self, *points: tuple[float, float], dashed=False) -> None:
        path = " ".join(f"{x},{y}" for x, y in points)
        dash = " stroke-dasharray='5 4'" if dashed else ""
        self.parts.append(
            f"<polyline points='{path}' fill='none' stroke='#444' stroke-width='1.4' "
            f"marker-end='url(#head)'{dash}/>"
        )

    def line(self, x1, y1, x2, y2, width=1.0, dashed=False) -> None:
        dash = " stroke-dasharray='5 4'" if dashed else ""
        self.parts.append(
            f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='#444' "
            f"stroke-width='{width}'{dash}/>"
        )

    def svg(self) -> str:
        head = (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {self.width} {self.height}' "
            f"width='{self.width}' height='{self.height}'>"
        )
        return "\n".join([head, *self.parts, "</svg>"]) + "\n"


def packed() -> Picture:
    """A padded batch beside the packed one."""
    p = Picture(760, 210, "A padded batch and the same batch packed")
    lengths, side, x0 = (7, 3, 5), 26, 20
    fills = ("#dbe9f6", "#fde8c8", "#d9ead3")
    p.text(x0, 24, "padded: (batch, seqlen) = (3, 7), 6 of 21 positions are padding", bold=True)
    for row, (length, fill) in enumerate(zip(lengths, fills, strict=True)):
        for column in range(7):
            real = column < length
            x, y = x0 + column * side, 36 + row * side
            p.box(x, y, side, side, str(column) if real else "", fill=fill if real else QUIET)
    p.text(x0, 146, "packed: (total_tokens,) = (15,), nothing is padding", bold=True)
    place = 0
    for length, fill in zip(lengths, fills, strict=True):
        for column in range(length):
            p.box(x0 + place * side, 156, side, side, str(column), fill=fill)
            place += 1
    for bound in (0, 7, 10, 15):
        p.text(x0 + bound * side, 200, str(bound), 12, "middle")
    p.text(x0 + 15 * side + 24, 174, "the numbers are position_ids", 12)
    p.text(x0 + 15 * side + 24, 200, "cu_seqlens = [0, 7, 10, 15], max_seqlen = 7", 12)
    p.arrow((x0 + 7 * side + 12, 75), (x0 + 7 * side + 300, 75), (x0 + 7 * side + 300, 152))
    p.text(x0 + 7 * side + 12, 96, "unpad, once, at the door", 12)
    p.text(x0 + 7 * side + 12, 114, "(pad does the reverse, once, at the exit)", 12)
    return p


def walk() -> Picture:
    """The way of a batch through pre-training, forward and backward, on a CPU and on a GPU."""
    p = Picture(980, 900, "The path of a batch through pre-training")
    left, width, cpu, gpu, gradient = 24, 350, 388, 486, 590
    p.text(left, 24, "Forward", 15, bold=True)
    p.text(left, 44, "blue: our op; white: matrix product; grey: no gradient", 12)
    p.text(cpu, 44, "on a CPU", 12, bold=True)
    p.text(gpu, 44, "on a GPU", 12, bold=True)
    p.text(gradient, 24, "Backward, from the bottom to the top", 15, bold=True)

    def stage(y, h, *lines, fill=OP, where=None):
        p.box(left, y, width, h, *lines, fill=fill, size=12)
        for x, words in zip((cpu, gpu), where or (), strict=False):
            p.text(x, y + h / 2 + 4, words, 11)

    def back(y, h, *lines):
        p.box(gradient, y, 370, h, *lines, size=12)

    cxx, blas = ("C++", "Triton"), ("oneDNN, MKL", "cuBLAS")
    stage(56, 44, "examples", "input_ids of texts, of any length", fill=QUIET)
    stage(118, 60, "collator: sample_spans", "masks spans, packs, lists positions and targets",
          "the same bits on every device", fill=QUIET, where=("C++", "CUDA C++"))  # fmt: skip
    stage(196, 60, "the door: EncoderInputs.of", "one Packing for the whole model;",
          "a padded batch is unpadded here, once", fill=QUIET, where=cxx)  # fmt: skip
    stage(274, 44, "embedding_layer_norm", "word + position + type, LayerNorm, dropout", where=cxx)
    p.rect(left - 12, 332, width + 24, 282, "none", dashed=True)
    p.text(cpu, 330, "in each layer:", 11)
    stage(340, 30, "linear: q, k, v", fill=PLAIN, where=blas)
    stage(380, 44, "varlen_attention", "softmax and dropout inside; scores are never stored",
          where=("C++ tiles, AMX", "Triton tiles"))  # fmt: skip
    stage(434, 30, "linear: projection, without its bias", fill=PLAIN, where=blas)
    stage(474, 44, "dropout_add_layer_norm", "bias, dropout, residual, LayerNorm", where=cxx)
    stage(528, 30, "linear, then bias_gelu", where=cxx)
    stage(570, 32, "linear, then dropout_add_layer_norm", where=cxx)
    stage(628, 44, "rows that a loss reads", "the last layer computes only these behind attention",
          fill=QUIET)  # fmt: skip
    p.box(left, 694, 165, 62, "masked-LM head", "linear, bias_gelu,", "LayerNorm", fill=OP, size=12)
    p.box(left + 180, 694, 170, 62, "span boundary head", "span_boundary_gather,",
          "linear, bias_gelu, norm", fill=OP, size=12)  # fmt: skip
    for x, words in ((cpu, "C++"), (gpu, "Triton")):
        p.text(x, 729, words, 11)
    stage(778, 44, "linear_cross_entropy, both heads in one call", "tied decoder, tile by tile",
          where=("oneDNN + C++", "Triton"))  # fmt: skip
    stage(842, 44, "loss", "mean over masked tokens + weight x mean over spans", fill=QUIET)

    middle = left + width / 2
    for a, b in ((100, 118), (178, 196), (256, 274), (318, 340), (370, 380), (424, 434),
                 (464, 474), (518, 528), (558, 570), (602, 628), (822, 842)):  # fmt: skip
        p.arrow((middle, a), (middle, b))
    for x in (left + 82, left + 265):
        p.arrow((x, 672), (x, 694))
        p.arrow((x, 756), (x, 778))

    back(842, 44, "dloss", "each row has its own upstream gradient")
    back(766, 60, "linear_cross_entropy backward", "scores are made again from lse, tile by tile;",
         "one dW for both heads, added to the word table")  # fmt: skip
    back(694, 62, "heads backward", "gather: a sum over each span's targets,",
         "in a fixed order, no atomics")  # fmt: skip
    back(628, 44, "rows backward", "zero for all other rows")
    back(570, 32, "norm: mean and rstd are kept, dropout is drawn again")
    back(528, 30, "bias_gelu: GELU' from x again; db in the same pass")
    back(474, 44, "dropout_add_layer_norm backward", "dx, dresidual, dbias, dweight in one pass")
    back(434, 30, "linear: dx = dy W, dW = dy^T x")
    back(374, 54, "varlen_attention backward", "P again from lse, dropout from its seed;",
         "kept from forward: q, k, v, out, lse")  # fmt: skip
    back(340, 30, "linear: dx = dy W, dW = dy^T x")
    back(274, 44, "embedding_layer_norm backward", "rows of a token are summed in a fixed order")
    back(196, 60, "optimiser: AdamW", "the Trainer's own; losses were divided by",
         "the targets of the global batch")  # fmt: skip
    centre = gradient + 185
    for a, b in ((842, 826), (766, 756), (694, 672), (628, 602), (570, 558), (528, 518),
                 (474, 464), (434, 428), (374, 370), (340, 318), (274, 256)):  # fmt: skip
        p.arrow((centre, a), (centre, b))
    p.arrow((left + width, 864), (gradient, 864))
    return p


def rooms() -> Picture:
    """Which folder imports which."""
    p = Picture(760, 400, "Folders of the package, and which imports which")
    for y, boxes in (
        (20, [(20, 720, "command line: cli.py, commands/")]),
        (
            76,
            [
                (20, 350, "training/: runs on the Trainer"),
                (390, 350, "accelerated/, integrations/"),
            ],
        ),
        (132, [(20, 170, "tasks/"), (200, 170, "data/"), (390, 350, "models/: Hugging Face API")]),
        (188, [(390, 350, "nn/: torch.nn modules on packed tokens")]),
        (244, [(20, 720, "ops/: one public, differentiable function per op")]),
        (316, [(20, 220, "reference/"), (270, 220, "csrc/: C++, CUDA"), (520, 220, "kernels/")]),
    ):
        for x, w, name in boxes:
            fill = OP if name.startswith("ops") else OURS if y == 316 else PLAIN
            p.box(x, y, w, 38, name, fill=fill)
    for x, rows in (
        (195, ((58, 76),)),
        (105, ((114, 132),)),
        (285, ((114, 132), (170, 244))),
        (565, ((58, 76), (114, 132), (170, 188), (226, 244))),
    ):
        for a, b in rows:
            p.arrow((x, a), (x, b))
    p.arrow((190, 145), (200, 145))
    p.arrow((340, 114), (430, 132))
    for x, label in ((130, "on request"), (380, "on a CPU"), (630, "on a GPU")):
        p.arrow((x, 282), (x, 316))
        p.text(x + 8, 304, label, 12)
    p.text(130, 372, "plain PyTorch: the law", 12, "middle")
    p.text(380, 372, "one form per instruction set", 12, "middle")
    p.text(630, 372, "Triton, one file per op", 12, "middle")
    p.text(380, 392, "PyTorch's dispatcher chooses; nothing falls back in silence", 12, "middle")
    return p


def attention() -> Picture:
    """The forward and the backward of one head of one sequence, in tiles."""
    p = Picture(820, 420, "Attention in tiles")
    p.text(20, 24, "Forward: a head of a sequence", 15, bold=True)
    p.box(20, 70, 60, 260, "q", fill=OP)
    p.rect(20, 130, 60, 50, OURS)
    p.text(50, 160, "tile", 12, "middle")
    p.box(110, 40, 240, 24, "k (transposed)", fill=OP)
    p.rect(110, 70, 240, 260, QUIET, dashed=True)
    p.rect(110, 130, 240, 50, OURS)
    p.text(230, 152, "S = scale q k^T, in cache", 12, "middle")
    p.text(230, 168, "P = exp(S - max), dropped", 12, "middle")
    p.text(230, 260, "never stored:", 12, "middle")
    p.text(230, 276, "seqlen x seqlen scores", 12, "middle")
    p.box(20, 350, 330, 24, "v: out tile = sum of P v over the tiles of keys", fill=OP, size=12)
    p.text(20, 398, "kept for the backward: out, and lse = log sum exp S of each row", 12)
    p.text(430, 24, "Backward: the scores once more", 15, bold=True)
    steps = (
        ("S = scale q k^T", "made again"),
        ("P = exp(S - lse)", "exact: lse is kept"),
        ("M from the seed", "dropout is drawn again, not loaded"),
        ("dv = (P M)^T dout", ""),
        ("dP = (dout v^T) M", ""),
        ("dS = P (dP - delta)", "delta = sum of dout out, per row"),
        ("dq = scale dS k", "dk = scale dS^T q"),
    )
    for i, (formula, why) in enumerate(steps):
        p.box(430, 44 + 46 * i, 170, 34, formula, fill=OURS if i in (0, 1, 2) else OP)
        p.text(612, 66 + 46 * i, why, 12)
        if i + 1 < len(steps):
            p.arrow((515, 78 + 46 * i), (515, 90 + 46 * i))
    p.text(430, 388, "No two tasks write one number, so results do not", 12)
    p.text(430, 404, "depend on the number of threads.", 12)
    return p


def dropout() -> Picture:
    """Bit-sliced comparison of 32 bytes with a threshold."""
    p = Picture(850, 330, "Thirty-two dropout decisions at once")
    p.text(20, 24, "One byte per element, cut across eight words", 15, bold=True)
    bits = ("0", "1", "1", "0", "0", "1", "0", "1")
    names = ("w7", "w6", "w5", "w4", "w3", "w2", "w1", "w0")
    threshold = ("0", "0", "0", "1", "1", "0", "1", "0")  # 26
    p.text(250, 50, "one column: the byte of one element", 12, "middle")
    for row, (name, bit, t) in enumerate(zip(names, bits, threshold, strict=True)):
        y = 60 + 26 * row
        p.text(44, y + 18, name, 13, "end")
        for column in range(16):
            mark = bit if column == 7 else ""
            p.box(54 + 24 * column, y, 24, 24, mark, fill=OURS if column == 7 else PLAIN)
        p.text(452, y + 18, "...", 13)
        p.box(500, y, 24, 24, t, fill=OP)
        p.text(540, y + 18, "keep = w & keep" if t == "1" else "keep = w | keep", 13)
    p.text(512, 50, "t", 13, "middle", True)
    p.arrow((690, 262), (690, 66))
    p.text(702, 165, "from the lowest bit", 12)
    p.text(702, 181, "to the highest", 12)
    p.text(
        54, 290, "Two Philox calls give the eight words of 2 queries x 16 keys. Eight bitwise", 12
    )
    p.text(54, 306, "steps compare 32 bytes with t = round(256 p): here t = 26, p = 0.1.", 12)
    p.text(
        54, 322, "A set bit of keep says byte >= t: the element stays, times 256 / (256 - t).", 12
    )
    return p


def loss() -> Picture:
    """Cross-entropy over the vocabulary, tile by tile."""
    p = Picture(820, 330, "The loss over the vocabulary, tile by tile")
    p.text(20, 24, "Forward", 15, bold=True)
    p.box(20, 40, 90, 60, "masked-LM", "rows", fill=OP, size=12)
    p.box(20, 104, 90, 60, "span", "rows", fill=OURS, size=12)
    p.text(65, 182, "X", 13, "middle", True)
    for i in range(6):
        p.rect(130 + 60 * i, 40, 58, 124, OURS if i == 2 else QUIET, dashed=i != 2)
    p.text(279, 98, "X W^T + b", 11, "middle")
    p.text(279, 114, "in cache", 11, "middle")
    for i in range(6):
        p.box(130 + 60 * i, 200, 58, 40, f"W {i}", fill=OP)
    p.arrow((279, 200), (279, 168))
    p.text(130, 262, "Each block of the decoder's rows is read once and cast once.", 12)
    p.text(130, 280, "Kept of a row: largest score, sum, its target's score.", 12)
    p.text(130, 298, "The two heads have one W and a bias each: one call makes both.", 12)
    p.text(530, 24, "Backward", 15, bold=True)
    for i, line in enumerate(("S again, for the same block", "D = dl (exp(S - lse) - onehot)",
                              "dX += D W", "dW = D^T X, complete, written once")):  # fmt: skip
        p.box(530, 44 + 48 * i, 260, 34, line, fill=OURS if i == 0 else OP, size=12)
        if i < 3:
            p.arrow((660, 78 + 48 * i), (660, 92 + 48 * i))
    p.text(530, 256, "On a CPU the forward keeps the scores of as", 12)
    p.text(530, 272, "many columns as fit 38 MB; the backward", 12)
    p.text(530, 288, "makes only the others again.", 12)
    return p


def boundary() -> Picture:
    """The span boundary objective."""
    p = Picture(820, 260, "The span boundary objective")
    words = ("the", "old", "[M]", "[M]", "[M]", "[M]", "fell", "down")
    for i, word in enumerate(words):
        inside = 2 <= i <= 5
        p.box(60 + 80 * i, 30, 76, 34, word, fill=OURS if inside else OP if i in (1, 6) else PLAIN)
        if inside:
            p.text(98 + 80 * i, 84, f"place {i - 2}", 12, "middle")
    p.text(178, 84, "x_l", 13, "middle", True)
    p.text(578, 84, "x_r", 13, "middle", True)
    p.box(60, 120, 250, 34, "W1 [x_l; x_r], once for a span", fill=OP, size=12)
    p.box(390, 120, 250, 34, "W1 p_k + b1, once for a place", fill=OP, size=12)
    p.arrow((178, 90), (178, 120))
    p.arrow((578, 90), (578, 104), (240, 104), (240, 120))
    p.box(160, 182, 380, 38, "span_boundary_gather: LN(GELU(span + place))", fill=OP)
    p.arrow((185, 154), (260, 182))
    p.arrow((515, 154), (440, 182))
    p.text(560, 206, "one row for each target that exists", 12)
    p.text(
        60,
        248,
        "Then W2, GELU, LayerNorm, and the tied decoder predict the token of each place.",
        12,
    )
    return p


def norm() -> Picture:
    """One pass in place of five."""
    p = Picture(820, 190, "Dropout, residual and LayerNorm in one pass")
    p.text(
        20,
        24,
        "PyTorch: five operators, each reads and writes (tokens, hidden_size)",
        13,
        bold=True,
    )
    for i, name in enumerate(("+ bias", "dropout", "+ residual", "LayerNorm", "cast")):
        p.box(20 + 150 * i, 38, 120, 32, name)
        if i < 4:
            p.arrow((140 + 150 * i, 54), (170 + 150 * i, 54))
    p.text(
        20,
        106,
        "dropout_add_layer_norm: one pass; a row stays in registers or cache",
        13,
        bold=True,
    )
    p.box(20, 120, 150, 46, "x, residual", "read once", size=12)
    p.box(220, 120, 300, 46, "sum, mean, variance, normalise", "Philox bytes decide dropout",
          fill=OP, size=12)  # fmt: skip
    p.box(570, 120, 220, 46, "y; mean and rstd of each row", "written once", size=12)
    p.arrow((170, 143), (220, 143))
    p.arrow((520, 143), (570, 143))
    return p


PICTURES = {f.__name__: f for f in (packed, walk, rooms, attention, dropout, loss, boundary, norm)}


def main() -> None:
    """Write every picture."""
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
