"""Pre-training and fine-tuning on the Hugging Face Trainer."""
