"""Runs on the Hugging Face Trainer: `pretraining`, `finetuning`, and here what both share."""
