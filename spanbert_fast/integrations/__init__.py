"""Ways in and out: checkpoints of other programs."""
