"""Where equal bits are promised, where they are not, and why: the table of docs/same_bits.md.

PYTHONPATH=tests python -m same_bits_cases        the table, with what holds on this machine
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from collator_cases import make_examples, make_tokenizer
from model_cases import pretraining_model
from op_cases import NAMES, Case, cases
from spanbert_fast import DataCollatorForSpanMasking, SpanBertForPreTraining
from spanbert_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm
from spanbert_fast.ops.varlen_attention import varlen_attention

COLUMNS = ("threads", "batch split", "workers", "checkpointing", "packed or padded")
PRODUCTS = "PyTorch's matrix products choose their blocks by shape and threads"
SUMS = "a sum over tokens is taken in their order"


class Promise(NamedTuple):
    """A cell of the table.

    Attributes:
        what, facet: its row and column.
        why_not: empty where equal bits are promised.
        results: [(results of one way, results of another)], one pair per comparison.
    """

    what: str
    facet: str
    why_not: str
    results: Callable[[], list[tuple[list[torch.Tensor], list[torch.Tensor]]]]

    def is_so(self) -> bool:
        """Whether all bits are equal here."""
        return all(
            a.dtype == b.dtype and torch.equal(a, b)
            for one, other in self.results()
            for a, b in zip(one, other, strict=True)
        )


def _with_threads(run: Callable[[], list[torch.Tensor]]):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(run())
    finally:
        torch.set_num_threads(before)
    return [(found[0], other) for other in found[1:]]


def _forward_and_backward(case: Case) -> list[torch.Tensor]:
    outputs = case.outputs()
    if case.backward is None:
        return list(outputs)
    upstream = torch.linspace(-1, 1, outputs[0].numel()).view_as(outputs[0]).to(outputs[0].dtype)
    return [*outputs, *case.backward(upstream, *case.inputs, *case.saved(outputs))]


def _ops_by_threads():
    torch.manual_seed(0)
    chosen = [cases(dtype)[name] for dtype in (torch.float32, torch.bfloat16) for name in NAMES]
    return _with_threads(lambda: [x for case in chosen for x in _forward_and_backward(case)])


def _offsets(*lengths: int) -> torch.Tensor:
    return torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)


def _rows_by_split():
    torch.manual_seed(0)
    x, residual, (weight, bias) = torch.randn(50, 96), torch.randn(50, 96), torch.randn(2, 96)
    q, k, v = torch.randn(3, 50, 2, 64)

    def run(first: int, last: int, *lengths: int) -> list[torch.Tensor]:
        part = slice(first, last)
        return [
            dropout_add_layer_norm(x[part], residual[part], weight, bias),
            varlen_attention(q[part], k[part], v[part], _offsets(*lengths), max(lengths)),
        ]

    parts = run(0, 37, 20, 17), run(37, 50, 13)
    joined = [torch.cat(pair) for pair in zip(*parts, strict=True)]
    return [(run(0, 50, 20, 17, 13), joined)]


def _collator(output: str = "packed") -> DataCollatorForSpanMasking:
    return DataCollatorForSpanMasking(make_tokenizer(), seed=4, output=output, dropout_seeds=True)


def _tensors(batch: dict) -> list[torch.Tensor]:
    return [value for value in batch.values() if isinstance(value, torch.Tensor)]


def _masks_by_threads():
    return _with_threads(lambda: _tensors(_collator()(make_examples([40, 3, 29]))))


def _masks_by_split():
    examples = make_examples([40, 3, 29, 17])
    alone = torch.cat([_collator()([e])["input_ids"] for e in examples])
    return [([_collator()(examples)["input_ids"]], [alone])]


def _masks_by_workers():
    examples = make_examples(range(10, 70, 5))
    found = []
    for workers in (0, 2):
        loader = DataLoader(
            examples, batch_size=5, collate_fn=_collator(), num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )  # fmt: skip
        found.append([x for batch in loader for x in _tensors(batch)])
    return [(found[0], found[1])]


def _model() -> SpanBertForPreTraining:
    torch.manual_seed(1)
    return pretraining_model()


def _step(batch: dict, checkpointing: bool = False) -> list[torch.Tensor]:
    """The losses and all gradients of a step with dropout."""
    model = _model().train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    output = model(**batch)
    output.loss.backward()
    found = [output.loss.detach(), output.mlm_loss.detach(), output.sbo_loss.detach()]
    return [*found, *(p.grad for p in model.parameters() if p.grad is not None)]


LENGTHS = (40, 3, 29, 17)


def _step_by_threads():
    batch = _collator()(make_examples(LENGTHS))
    return _with_threads(lambda: _step(batch))


def _step_by_split():
    examples = make_examples(LENGTHS)
    whole = _step(_collator()(examples))[3:]
    model = _model().train()
    for part in (examples[:2], examples[2:]):
        (model(**_collator()(part)).loss / 2).backward()
    parts = [p.grad for p in model.parameters() if p.grad is not None]
    return [(whole, parts)]


def _step_by_checkpointing():
    batch = _collator()(make_examples(LENGTHS))
    return [(_step(batch), _step(batch, checkpointing=True))]


def _step_by_layout():
    batches = [_collator(output)(make_examples(LENGTHS)) for output in ("packed", "padded")]
    return [(_step(batches[0]), _step(batches[1]))]


def _hidden_by_layout():
    model, batch = _model(), _collator()(make_examples(LENGTHS))
    padded = _collator("padded")(make_examples(LENGTHS))
    real = padded["attention_mask"].bool()
    with torch.no_grad():
        rows = model(batch["input_ids"], cu_seqlens=batch["cu_seqlens"]).logits
        shape = model(padded["input_ids"], attention_mask=padded["attention_mask"]).logits
    return [([rows], [shape[real]])]


def _hidden_by_split():
    model, collator = _model(), _collator()

    def run(examples):
        batch = collator(examples)
        with torch.no_grad():
            return model(batch["input_ids"], cu_seqlens=batch["cu_seqlens"]).logits

    examples = make_examples(LENGTHS)
    return [([run(examples)], [torch.cat([run([e]) for e in examples])])]


def _hidden_by_threads():
    model, batch = _model(), _collator()(make_examples(LENGTHS))

    def run():
        with torch.no_grad():
            return [model(batch["input_ids"], cu_seqlens=batch["cu_seqlens"]).logits]

    return _with_threads(run)


OPS, ROWS, MASKS = (
    "ops, forward and backward",
    "norms and attention, forward",
    "span masks, batches",
)
SCORES, STEP = "a model's scores", "losses and gradients of a step"
PROMISES = (
    Promise(OPS, "threads", "", _ops_by_threads),
    Promise(ROWS, "batch split", "", _rows_by_split),
    Promise(MASKS, "threads", "", _masks_by_threads),
    Promise(MASKS, "batch split", "", _masks_by_split),
    Promise(MASKS, "workers", "", _masks_by_workers),
    Promise(SCORES, "threads", PRODUCTS, _hidden_by_threads),
    Promise(SCORES, "batch split", PRODUCTS, _hidden_by_split),
    Promise(SCORES, "packed or padded", "", _hidden_by_layout),
    Promise(STEP, "threads", PRODUCTS, _step_by_threads),
    Promise(STEP, "batch split", SUMS, _step_by_split),
    Promise(STEP, "checkpointing", "", _step_by_checkpointing),
    Promise(STEP, "packed or padded", "", _step_by_layout),
)


def table(cell: Callable[[Promise], str] | None = None) -> str:
    """The table in Markdown; a cell says what is promised, unless `cell` gives another text."""
    reasons = list(dict.fromkeys(p.why_not for p in PROMISES if p.why_not))
    cells = {}
    for p in PROMISES:
        promised = f"no ({reasons.index(p.why_not) + 1})" if p.why_not else "same"
        cells[p.what, p.facet] = promised + (cell(p) if cell else "")
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for what in dict.fromkeys(p.what for p in PROMISES):
        row = [cells.get((what, column), "") for column in COLUMNS]
        lines.append(f"| {what} | {' | '.join(row)} |")
    lines.append("")
    lines += [f"{number}. {reason}." for number, reason in enumerate(reasons, 1)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(lambda p: "; here the same" if p.is_so() else "; here not the same"))
