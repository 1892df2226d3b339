"""SpanBERT: pre-training, continued pre-training and fine-tuning with span objectives.

    import spanbert_fast as sb
    model = sb.SpanBertForPreTraining.from_pretrained("path/to/bert-or-spanbert")

The public names are loaded when first used, so that the ops alone import without Hugging Face's
library. The first of the models to be used (or `import spanbert_fast.models`) also registers them
all with transformers' Auto classes.
"""

import importlib
from typing import Any

from spanbert_fast import _extension  # noqa: F401  (says so where there is no extension)

__version__ = "0.1.0"

_PUBLIC = {
    "DataCollatorForSpanMasking": "spanbert_fast.data.collator",
    "FillSpan": "spanbert_fast.fill_span",
    "SpanBertConfig": "spanbert_fast.models",
    "SpanBertForMaskedLM": "spanbert_fast.models",
    "SpanBertForPreTraining": "spanbert_fast.models",
    "SpanBertForQuestionAnswering": "spanbert_fast.models",
    "SpanBertForSequenceClassification": "spanbert_fast.models",
    "SpanBertForTokenClassification": "spanbert_fast.models",
    "SpanBertModel": "spanbert_fast.models",
    "accelerate": "spanbert_fast.accelerated.accelerate",
    "decelerate": "spanbert_fast.accelerated.accelerate",
    "sample_spans": "spanbert_fast.ops.sample_spans",
    "sample_spans_fixed": "spanbert_fast.ops.sample_spans",
    "SpanOptions": "spanbert_fast.ops.span_options",
    "use_backend": "spanbert_fast.ops._backend",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
