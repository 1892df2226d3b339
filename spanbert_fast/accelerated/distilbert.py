"""DistilBERT on packed tokens, under the names of its classes in transformers."""

from spanbert_fast.accelerated.registry import classes_of

__getattr__ = classes_of("distilbert")
