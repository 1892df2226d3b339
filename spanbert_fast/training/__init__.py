"""Pre-training on the Hugging Face Trainer."""
