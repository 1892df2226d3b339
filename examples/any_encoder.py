"""Span objectives for a RoBERTa or an XLM-RoBERTa: tokenizer, start, training, and a check.

    python examples/any_encoder.py roberta runs/roberta                     # text of Python's own
    python examples/any_encoder.py xlm-roberta runs/xlmr TEXT_FILE [TEXT_FILE ...]

It trains a tokenizer of the family (byte-level BPE, or SentencePiece's unigram model), writes a
small model of transformers' own class with random weights, and goes on with it by
`spanbert-fast pretrain --init-from`. With a checkpoint of yours that command alone is enough. At
the end transformers' class loads the result, and its scores are compared.
"""

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizer,
)

from spanbert_fast import AutoModelForSpanPreTraining
from spanbert_fast.cli import main as spanbert_fast
from spanbert_fast.training.pretraining.sources import documents_of

FAMILIES = {
    "roberta": (RobertaTokenizer, RobertaConfig, RobertaForMaskedLM),
    "xlm-roberta": (XLMRobertaTokenizer, XLMRobertaConfig, XLMRobertaForMaskedLM),
}


def write_start(folder: Path, family: str, texts: list[str], vocab_size: int, seed: int) -> None:
    """A tokenizer of these texts, and a model of random weights: what a checkpoint would have."""
    torch.manual_seed(seed)
    tokenizer_class, config_class, model_class = FAMILIES[family]
    tokenizer = tokenizer_class().train_new_from_iterator(texts, vocab_size)
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=192,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=768,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def largest_difference(folder: Path, text: str) -> float:
    """Of the scores of transformers' class and of ours, from the same checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stock, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise RuntimeError(f"{folder} is not an ordinary {type(stock).__name__}: {info}")
    ours = AutoModelForSpanPreTraining.from_pretrained(folder).eval()
    inputs = tokenizer(text, return_tensors="pt")
    scores = [
        model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).logits
        for model in (stock.eval(), ours)
    ]
    print(f"{type(stock).__name__}: {stock.num_parameters():,} parameters, loaded by transformers")
    return (scores[0] - scores[1]).abs().max().item()


def main(arguments: list[str] | None = None) -> float:
    """Train; returns the largest difference of a score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("output", type=Path)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--vocab-size", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options, more = parser.parse_known_args(arguments)  # more: options of `pretrain`

    start = options.output / "start"
    texts = documents_of(tuple(options.files), 1 << 26)["text"][:]
    write_start(start, options.family, texts, options.vocab_size, options.seed)
    command = ["pretrain", "--init-from", str(start), "--output-dir", str(options.output / "run")]
    command += ["--data", *options.files] if options.files else []
    code = spanbert_fast([*command, "--recipe", "tiny", "--seed", str(options.seed), *more])
    if code != 0:
        raise SystemExit(code)
    difference = largest_difference(options.output / "run" / "model", texts[0].splitlines()[0])
    print(f"largest difference of a score: {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
