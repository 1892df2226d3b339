"""SpanBERT: pre-training, continued pre-training and fine-tuning with span objectives."""

from spanbert_fast import _extension

__version__ = "0.1.0"
