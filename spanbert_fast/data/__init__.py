"""From text to batches: corpora, shards, blocks, and the span-masking collator.

Each module is loaded when first used.
"""

from typing import TYPE_CHECKING

from spanbert_fast._lazy import lazy

_MODULES = (
    "batches",
    "blocks",
    "collator",
    "corpus",
    "embedded",
    "prepare",
    "shards",
    "static_shapes",
    "text_files",
    "tokenizer",
)

if TYPE_CHECKING:
    from spanbert_fast.data import batches as batches
    from spanbert_fast.data import blocks as blocks
    from spanbert_fast.data import collator as collator
    from spanbert_fast.data import corpus as corpus
    from spanbert_fast.data import embedded as embedded
    from spanbert_fast.data import prepare as prepare
    from spanbert_fast.data import shards as shards
    from spanbert_fast.data import static_shapes as static_shapes
    from spanbert_fast.data import text_files as text_files
    from spanbert_fast.data import tokenizer as tokenizer
else:
    __getattr__ = lazy(__name__, _MODULES)
