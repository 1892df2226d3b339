"""The model card of a pre-training run."""

import dataclasses
from pathlib import Path

from spanbert_fast.models import SpanBertForPreTraining
from spanbert_fast.models.span_objectives import SpanObjectives
from spanbert_fast.training.model_card import data_table, table, versions, write_card
from spanbert_fast.training.options import PretrainOptions

_LOSSES = (
    ("masked-LM loss (nats)", "mlm_loss"),
    ("masked-LM accuracy", "mlm_accuracy"),
    ("span boundary loss (nats)", "sbo_loss"),
    ("span boundary accuracy", "sbo_accuracy"),
)


def write_pretraining_card(
    model_dir: Path,
    options: PretrainOptions,
    model: SpanObjectives,
    summary: dict,
    tokens: int,
) -> Path:
    """README.md beside the weights: data, recipe, tokens seen, losses, versions, limits.

    Args:
        summary: what summary.json holds; both held-out evaluations must be in it.
        tokens: word pieces that the model was trained on, counted as often as it saw them.
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
