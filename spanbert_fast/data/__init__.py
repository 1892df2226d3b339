"""From text to batches: corpora, shards, blocks, and the span-masking collator."""
