"""accelerate(), the attention interface, and the import of fairseq checkpoints."""
