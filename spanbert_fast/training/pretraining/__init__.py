"""Pre-training with span objectives. `pretrain.py` is a run from its start to its end."""
