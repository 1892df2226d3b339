"""The settings of a pre-training run, and the presets from the paper."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spanbert_fast.errors import UsageError

if TYPE_CHECKING:  # both load torch, for which `--help` need not wait
    from spanbert_fast.config import SpanBertConfig
    from spanbert_fast.ops.span_options import SpanOptions


def _setting(default, help: str, group: str, choices: tuple[str, ...] | None = None):
    return field(default=default, metadata={"help": help, "group": group, "choices": choices})


def _model(default, help: str):
    return _setting(default, help, "model (not with --init-from)")


def _data(default, help: str):
    return _setting(default, help, "data and batches")


def _optimiser(default, help: str):
    return _setting(default, help, "optimiser and regularisation")


def _masking(default, help: str, choices: tuple[str, ...] | None = None):
    return _setting(default, help, "masking and losses", choices)


@dataclass(frozen=True)
class Recipe:
    """Every value that decides what is trained, and on what. The defaults are those of the paper
    (Joshi et al. 2020, sections 3 and 4.2), or of the released code if the paper gives none.

        >>> Recipe().override(max_steps=1000).max_steps
        1000
    """

    hidden_size: int = _model(768, "features of a token")
    num_hidden_layers: int = _model(12, "layers")
    num_attention_heads: int = _model(12, "attention heads")
    intermediate_size: int = _model(3072, "features inside the feed-forward network")
    vocab_size: int = _model(28996, "word pieces, where the run trains its own tokenizer")

    max_seq_length: int = _data(512, "tokens of a sequence, [CLS] and [SEP] included")
    short_seq_prob: float = _data(0.0, "share of sequences that are cut to a random length")
    tokens_per_batch: int = _data(16384, "most tokens of one batch of one process")
    gradient_accumulation_steps: int = _data(8, "batches of one optimiser step")

    max_steps: int = _optimiser(2_400_000, "optimiser steps")
    warmup_steps: int = _optimiser(10_000, "steps in which the learning rate rises")
    learning_rate: float = _optimiser(1e-4, "highest learning rate; then it falls linearly to 0")
    adam_beta1: float = _optimiser(0.9, "decay of the first moment")
    adam_beta2: float = _optimiser(0.999, "decay of the second moment")
    adam_epsilon: float = _optimiser(1e-8, "added to the root of the second moment")
    weight_decay: float = _optimiser(0.01, "decoupled decay; none on biases and norms")
    max_grad_norm: float = _optimiser(1.0, "gradients are clipped to this norm")
    dropout: float = _optimiser(0.1, "dropout of hidden states and of attention")

    mask_ratio: float = _masking(0.15, "share of the word pieces that are masked")
    geometric_p: float = _masking(0.2, "parameter of the span lengths' geometric law")
    min_span_words: int = _masking(1, "shortest span, in words")
    max_span_words: int = _masking(10, "longest span, in words")
    max_span_targets: int = _masking(20, "places of a span that the span boundary head predicts")
    replacement: str = _masking(
        "span", "decide [MASK] / random / unchanged once per span or per token", ("span", "token")
    )
    sbo_weight: float = _masking(1.0, "weight of the span boundary loss")
    pair_loss_weight: float = _masking(0.0, "weight of the auxiliary pair-likelihood loss")

    def override(self, **values) -> "Recipe":
        """This recipe with other values (None keeps a value), checked."""
        recipe = dataclasses.replace(self, **{k: v for k, v in values.items() if v is not None})
        recipe.check()
        return recipe

    def check(self) -> None:
        """Raise UsageError, with the name of the option, on a value that is out of range."""
        for name in (
            "hidden_size num_hidden_layers num_attention_heads intermediate_size tokens_per_batch "
            "gradient_accumulation_steps max_steps min_span_words max_span_targets"
        ).split():
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("vocab_size", self.vocab_size >= 100, "at least 100")
        self._require("max_seq_length", self.max_seq_length >= 3, "at least 3")
        self._require(
            "max_span_words",
            self.max_span_words >= self.min_span_words,
            f"at least --min-span-words = {self.min_span_words}",
        )
        self._require("max_span_words", self.max_span_words <= 256, "at most 256")
        self._require(
            "hidden_size",
            self.hidden_size % self.num_attention_heads == 0,
            f"a multiple of --num-attention-heads = {self.num_attention_heads}",
        )
        self._require(
            "tokens_per_batch",
            self.tokens_per_batch >= self.max_seq_length,
            f"at least --max-seq-length = {self.max_seq_length}",
        )
        for name in "warmup_steps weight_decay max_grad_norm sbo_weight pair_loss_weight".split():
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in "learning_rate adam_epsilon".split():
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in "dropout short_seq_prob adam_beta1 adam_beta2".split():
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in "mask_ratio geometric_p".split():
            self._require(name, 0 < getattr(self, name) <= 1, "in (0, 1]")
        self._require("mask_ratio", self.mask_ratio >= 1e-6, "at least 1e-6")

    def _require(self, name: str, fits: bool, rule: str) -> None:
        if not fits:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} must be {rule}, got {getattr(self, name)}")

    def model_config(self, vocab_size: int, pad_token_id: int) -> "SpanBertConfig":
        """The configuration of a new model."""
        from spanbert_fast.config import SpanBertConfig

        return SpanBertConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=max(512, self.max_seq_length),
            pad_token_id=pad_token_id,
            **self.objective_fields(),
        )

    def objective_fields(self) -> dict:
        """The fields of a model's configuration that do not depend on its size."""
        return {
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
            "max_span_targets": self.max_span_targets,
            "sbo_weight": self.sbo_weight,
            "pair_loss_weight": self.pair_loss_weight,
        }

    def span_options(self, max_span_targets: int) -> "SpanOptions":
        """The span sampler's options, for a model with `max_span_targets` places."""
        from spanbert_fast.ops.span_options import SpanOptions

        return SpanOptions(
            mask_ratio=self.mask_ratio,
            geometric_p=self.geometric_p,
            min_span_words=self.min_span_words,
            max_span_words=self.max_span_words,
            max_span_targets=max_span_targets,
            replacement=self.replacement,
        )


RECIPES = {
    "spanbert-base": Recipe(),
    "spanbert-large": Recipe(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        tokens_per_batch=8192,
        gradient_accumulation_steps=16,
    ),
    "small": Recipe(
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=2048,
        vocab_size=16000,
        tokens_per_batch=8192,
        gradient_accumulation_steps=4,
        max_steps=100_000,
        warmup_steps=5_000,
        learning_rate=5e-4,
    ),
    "tiny": Recipe(
        hidden_size=192,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=768,
        vocab_size=4000,
        max_seq_length=128,
        tokens_per_batch=2048,
        gradient_accumulation_steps=1,
        max_steps=800,
        warmup_steps=80,
        learning_rate=1e-3,
    ),
}


def recipe_named(name: str) -> Recipe:
    """The preset of that name.

    Raises:
        UsageError: there is no such preset.
    """
    if name not in RECIPES:
        raise UsageError(f"--recipe must be one of {', '.join(RECIPES)}, got {name}")
    return RECIPES[name]
