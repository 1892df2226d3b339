"""Fine-tuning on a task. `finetune.py` is a run from its start to its end."""
