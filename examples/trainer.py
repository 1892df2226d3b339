"""The Hugging Face Trainer with an accelerated model: masked-LM training on text files.

    python examples/trainer.py MODEL_DIRECTORY OUTPUT_DIRECTORY TEXT_FILE [TEXT_FILE ...]

MODEL_DIRECTORY holds any Hugging Face BERT checkpoint with its tokenizer; what is saved loads
without this package.
"""

import argparse

from datasets import load_dataset
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

import spanbert_fast


def main(arguments: list[str] | None = None) -> float:
    """Train and save; returns the loss on a tenth of the lines, held out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    options = parser.parse_args(arguments)

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForMaskedLM.from_pretrained(options.model)
    spanbert_fast.accelerate(model)  # decodes the masked positions alone while it trains

    lines = load_dataset("text", data_files=options.files, split="train")
    lines = lines.filter(lambda row: row["text"].strip())
    limit = model.config.max_position_embeddings
    rows = lines.map(
        lambda row: tokenizer(row["text"], truncation=True, max_length=limit),
        remove_columns="text",
    ).train_test_split(test_size=0.1, seed=0)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            prediction_loss_only=True,
            report_to=[],
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        data_collator=DataCollatorForLanguageModeling(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    loss = trainer.evaluate()["eval_loss"]
    print(f"held-out masked-LM loss {loss:.4f}")
    return loss


if __name__ == "__main__":
    main()
