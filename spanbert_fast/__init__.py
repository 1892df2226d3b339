"""SpanBERT: pre-training, continued pre-training and fine-tuning with span objectives.

    import spanbert_fast as sb
    model = sb.SpanBertForPreTraining.from_pretrained("path/to/bert-or-spanbert")

The public names, and the rooms `data`, `models`, `nn`, `ops`, `optim` and `tasks`, are loaded when
first used, so that importing the package costs nothing and the ops alone import without Hugging
Face's library. The first of the models to be used (or `import spanbert_fast.models`) also registers
them all with transformers' Auto classes.
"""

from typing import TYPE_CHECKING

from spanbert_fast._lazy import lazy

__version__ = "0.1.0"

_ROOMS = ("data", "models", "nn", "ops", "optim", "tasks")
_PUBLIC = {
    "AutoModelForSpanPreTraining": "spanbert_fast.models",
    "DataCollatorForSpanMasking": "spanbert_fast.data.collator",
    "FillSpan": "spanbert_fast.fill_span",
    "SpanBertConfig": "spanbert_fast.models",
    "SpanBertForCoreference": "spanbert_fast.models",
    "SpanBertForMaskedLM": "spanbert_fast.models",
    "SpanBertForPreTraining": "spanbert_fast.models",
    "SpanBertForQuestionAnswering": "spanbert_fast.models",
    "SpanBertForSequenceClassification": "spanbert_fast.models",
    "SpanBertForTokenClassification": "spanbert_fast.models",
    "SpanBertModel": "spanbert_fast.models",
    "accelerate": "spanbert_fast.accelerated.accelerate",
    "decelerate": "spanbert_fast.accelerated.accelerate",
    "release_memory": "spanbert_fast.ops._memory",
    "sample_spans": "spanbert_fast.ops.sample_spans",
    "sample_spans_fixed": "spanbert_fast.ops.sample_spans",
    "SpanOptions": "spanbert_fast.ops.span_options",
    "use_backend": "spanbert_fast.ops._backend",
}

__all__ = [*_PUBLIC, *_ROOMS, "__version__"]

if TYPE_CHECKING:  # what a type checker and an editor see: a name that is not here is a mistake
    from spanbert_fast import data as data
    from spanbert_fast import models as models
    from spanbert_fast import nn as nn
    from spanbert_fast import ops as ops
    from spanbert_fast import optim as optim
    from spanbert_fast import tasks as tasks
    from spanbert_fast.accelerated.accelerate import accelerate as accelerate
    from spanbert_fast.accelerated.accelerate import decelerate as decelerate
    from spanbert_fast.data.collator import DataCollatorForSpanMasking as DataCollatorForSpanMasking
    from spanbert_fast.fill_span import FillSpan as FillSpan
    from spanbert_fast.models import AutoModelForSpanPreTraining as AutoModelForSpanPreTraining
    from spanbert_fast.models import SpanBertConfig as SpanBertConfig
    from spanbert_fast.models import SpanBertForCoreference as SpanBertForCoreference
    from spanbert_fast.models import SpanBertForMaskedLM as SpanBertForMaskedLM
    from spanbert_fast.models import SpanBertForPreTraining as SpanBertForPreTraining
    from spanbert_fast.models import SpanBertForQuestionAnswering as SpanBertForQuestionAnswering
    from spanbert_fast.models import (
        SpanBertForSequenceClassification as SpanBertForSequenceClassification,
    )
    from spanbert_fast.models import (
        SpanBertForTokenClassification as SpanBertForTokenClassification,
    )
    from spanbert_fast.models import SpanBertModel as SpanBertModel
    from spanbert_fast.ops._backend import use_backend as use_backend
    from spanbert_fast.ops._memory import release_memory as release_memory
    from spanbert_fast.ops.sample_spans import sample_spans as sample_spans
    from spanbert_fast.ops.sample_spans import sample_spans_fixed as sample_spans_fixed
    from spanbert_fast.ops.span_options import SpanOptions as SpanOptions
else:
    __getattr__ = lazy(__name__, _ROOMS, _PUBLIC)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
