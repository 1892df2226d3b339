"""A plain PyTorch loop made faster by one line.

    python examples/drop_in_loop.py [--model DIRECTORY]

Fine-tunes a BERT classifier on sentences about weather and about food; `--model` names any
Hugging Face BERT checkpoint with its tokenizer (default: a small one with random weights).
"""

import argparse
import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
)

import spanbert_fast

WEATHER = "rain sun wind snow cloud storm fog frost".split()
FOOD = "bread soup apple cheese rice butter pepper honey".split()
COMMON = "the a we had some with and then today again".split()


def sentences(count: int, draw: random.Random) -> tuple[list[str], list[int]]:
    """Sentences of 4 to 30 words and their topics, 0 or 1."""
    texts, labels = [], []
    for _ in range(count):
        label = draw.randrange(2)
        words = draw.choices(COMMON, k=draw.randint(3, 28))
        words.insert(draw.randrange(len(words)), draw.choice((WEATHER, FOOD)[label]))
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


def small_model():
    """(model, tokenizer) of a size for trying out."""
    words = ["[PAD]", "[UNK]", *WEATHER, *FOOD, *COMMON]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    return model, PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )


def main(arguments: list[str] | None = None) -> float:
    """Train, print the loss, and return the accuracy on new sentences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint's directory or name")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    if options.model is None:
        model, tokenizer = small_model()
    else:
        model = AutoModelForSequenceClassification.from_pretrained(options.model)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)

    spanbert_fast.accelerate(model)  # the one line

    draw = random.Random(0)
    model.train()
    for step in range(options.steps):
        texts, labels = sentences(16, draw)
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        loss = model(**batch, labels=torch.tensor(labels)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.4f}")

    texts, labels = sentences(200, draw)
    with torch.no_grad():
        logits = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    accuracy = (logits.argmax(1) == torch.tensor(labels)).float().mean().item()
    print(f"accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
