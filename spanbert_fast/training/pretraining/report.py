"""What a pre-training run leaves for a reader: its curve and the model card."""

import dataclasses
from pathlib import Path

from spanbert_fast.models import SpanBertForPreTraining
from spanbert_fast.models.span_objectives import SpanObjectives
from spanbert_fast.training.model_card import data_table, table, versions, write_card
from spanbert_fast.training.pretraining.options import PretrainOptions
from spanbert_fast.training.pretraining.run_directory import CURVE, read_metrics

_LOSSES = (
    ("masked-LM loss (nats)", "mlm_loss"),
    ("masked-LM accuracy", "mlm_accuracy"),
    ("span boundary loss (nats)", "sbo_loss"),
    ("span boundary accuracy", "sbo_accuracy"),
)


def draw_curves(run: Path, summary: dict) -> Path:
    """Draw losses over steps as a PNG that is readable without colour; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(run)
    steps = [line["step"] for line in lines]
    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, label, style in (
        ("mlm_loss", "masked LM, training", "-"),
        ("sbo_loss", "span boundary, training", "--"),
    ):
        axis.plot(steps, [line[name] for line in lines], style, label=label, linewidth=1.2)
    last = steps[-1] if steps else 0
    for name, label, marker in (
        ("mlm_loss", "masked LM, held out", "o"),
        ("sbo_loss", "span boundary, held out", "s"),
    ):
        held_out = [summary[when][name] for when in ("held_out_before", "held_out_after")]
        axis.plot([0, last], held_out, marker, label=label, markerfacecolor="none", color="black")
    axis.axhline(
        summary["unigram_cross_entropy"],
        linestyle=":",
        color="black",
        label="unigram model, held out",
    )
    axis.set_xlabel("optimiser step")
    axis.set_ylabel("cross-entropy per token (nats)")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(run / CURVE, dpi=120)
    pyplot.close(figure)
    return run / CURVE


def write_pretraining_card(
    model_dir: Path,
    options: PretrainOptions,
    model: SpanObjectives,
    summary: dict,
    tokens: int,
) -> Path:
    """README.md beside the weights: data, recipe, tokens seen, losses, versions, limits.

    Args:
        summary: the content of summary.json, with both held-out evaluations.
        tokens: word pieces of training, each counted as often as the model saw it.
    """
    recipe = options.recipe
    start = f"from `{options.init_from}`" if options.init_from else "from random weights"
    files = {f"text {i}": path for i, path in enumerate(options.data, start=1)}
    data = data_table(files) if files else "The documentation that comes with CPython."
    before, after = summary["held_out_before"], summary["held_out_after"]
    losses = [(label, f"{before[n]:.4f}", f"{after[n]:.4f}") for label, n in _LOSSES]
    values = [
        ("recipe", options.recipe_name),
        ("precision", options.precision),
        ("weights_dtype", options.weights_dtype),
        ("seed", options.seed),
        *dataclasses.asdict(recipe).items(),
    ]
    is_bert = isinstance(model, SpanBertForPreTraining)
    kind = "a BERT" if is_bert else f"`{type(model).__name__}`"
    title = "SpanBERT pre-trained" if is_bert else f"{type(model).__name__} with span objectives"
    body = f"""# {title} {start}

Made by `spanbert-fast pretrain`: spans of whole words are masked, and predicted by a masked-LM head
and from the tokens at the span's boundary (Joshi et al. 2020, arXiv 1907.10529). It saw {tokens:,}
word pieces in {recipe.max_steps:,} steps.

`transformers` loads it as {kind}: `AutoModel`, `AutoModelForMaskedLM`, `pipeline("fill-mask")`. The
span boundary head is in `span_boundary.safetensors`, which
`spanbert_fast.AutoModelForSpanPreTraining` reads as well.

## Losses on {options.held_out:.3g} of the text, held out

{table(("", "before", "after"), losses)}

The unigram model of the training text has {summary["unigram_cross_entropy"]:.4f} nats on the same
tokens.

## Data

{data}

## Recipe

{table(("name", "value"), values)}

## Limits

It knows what is in the text above, its mistakes and slants included, and nothing else. It was
measured by the two losses alone: on a task it has to be fine-tuned and measured there.

## Versions

{versions()}
"""
    fields = {"pipeline_tag": "fill-mask", "tags": ["spanbert", "fill-mask"]}
    return write_card(model_dir, fields, options.init_from, body)
