"""The models that bench_training.py compares in the same training step.

Every provider has the same masked text, sizes and optimiser. Hugging Face's models get it padded
and compute the masked-LM loss; ours get it packed and also compute the span boundary loss, which is
more work. Names of parameters are the same in all of them (contract C1).
"""

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence

import torch
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig, BertForMaskedLM

from spanbert_fast.models import SpanBertConfig, SpanBertForPreTraining
from spanbert_fast.nn.targets import SpanTargets
from spanbert_fast.ops.sample_spans import sample_spans

CLS, SEP, MASK, FIRST_WORD = 1, 2, 3, 5
MLM, BOTH = "mlm", "mlm + sbo"


@dataclasses.dataclass(frozen=True)
class Case:
    """One training step to measure; `lengths` are the tokens of its sequences."""

    layers: int
    seqlen: int
    lengths: tuple[int, ...]
    dtype: str = "bf16"
    dropout: float = 0.1
    hidden_size: int = 768
    vocab_size: int = 28_996
    device: str = "cpu"


@dataclasses.dataclass
class Batch:
    """The same masked text twice: arguments of Hugging Face's models, padded, and of ours."""

    padded: dict[str, torch.Tensor]
    packed: dict[str, torch.Tensor | int]

    @classmethod
    def of(cls, case: Case, seed: int = 1, words: torch.Tensor | None = None) -> "Batch":
        """Text with 15 % masked in spans.

        Args:
            case: its lengths and its vocabulary.
            seed: seed of the masks and of random words of one or two pieces.
            words: int64, as many ids as the case has tokens; replaces the random words.
        """
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.tensor(case.lengths)
        total, longest = int(lengths.sum()), int(lengths.max())
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int()
        ids = torch.randint(FIRST_WORD, case.vocab_size, (total,), generator=generator)
        word_starts = torch.rand(total, generator=generator) >= 0.1
        if words is not None:
            ids, word_starts = words.clone(), torch.ones_like(word_starts)
        ids[cu_seqlens[:-1].long()], ids[cu_seqlens[1:].long() - 1] = CLS, SEP
        sample = sample_spans(
            ids,
            cu_seqlens,
            word_starts,
            seed=seed,
            sequence_ids=torch.arange(len(lengths)),
            mask_token_id=MASK,
            random_token_pool=torch.arange(FIRST_WORD, case.vocab_size),
            special_mask=(ids == CLS) | (ids == SEP),
        )
        names = "input_ids mlm_positions mlm_targets span_boundaries cu_span_lengths sbo_targets"
        packed = {name: getattr(sample, name) for name in names.split()}
        kept = torch.arange(longest) < lengths[:, None]
        packed_labels = torch.full_like(ids, -100)
        packed_labels[sample.mlm_positions] = sample.mlm_targets
        padded = {"input_ids": torch.zeros(kept.shape, dtype=torch.int64)}
        padded["labels"] = torch.full_like(padded["input_ids"], -100)
        padded["input_ids"][kept], padded["labels"][kept] = sample.input_ids, packed_labels
        if not kept.all():  # without padding Hugging Face is faster with no mask
            padded["attention_mask"] = kept.long()
        packed |= {"cu_seqlens": cu_seqlens, "max_seqlen": longest}
        return cls(*({k: _moved(v, case.device) for k, v in d.items()} for d in (padded, packed)))

    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return self.packed["input_ids"].shape[0]


def _moved(value: torch.Tensor | int, device: str) -> torch.Tensor | int:
    return value.to(device) if isinstance(value, torch.Tensor) else value


@dataclasses.dataclass
class Provider:
    """A model in training, and the functions that turn a batch into its losses.

    Attributes:
        model: the model, whose parameters are trained.
        losses: objective -> function of a batch; the last one is what a training step minimises.
        backend: the backend of our ops.
        captured: whether its whole step is one CUDA graph on a GPU.
    """

    model: nn.Module
    losses: dict[str, Callable[[Batch], torch.Tensor]]
    backend: str = "kernels"
    captured: bool = False


def _sizes(case: Case) -> dict:
    return {
        "vocab_size": case.vocab_size,
        "hidden_size": case.hidden_size,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.hidden_size // 64,
        "intermediate_size": 4 * case.hidden_size,
        "max_position_embeddings": max(512, case.seqlen),
        "hidden_dropout_prob": case.dropout,
        "attention_probs_dropout_prob": case.dropout,
    }


def _ours(case: Case, backend: str = "kernels", captured: bool = False) -> Provider:
    model = SpanBertForPreTraining(SpanBertConfig(**_sizes(case)))

    def masked_lm(batch: Batch) -> torch.Tensor:
        names = ("input_ids", "cu_seqlens", "max_seqlen", "mlm_positions", "mlm_targets")
        return model(**{name: batch.packed[name] for name in names}).loss

    losses = {MLM: masked_lm, BOTH: lambda batch: model(**batch.packed).loss}
    return Provider(model, losses, backend, captured)


def stock_encoder(case: Case, attention: str) -> Provider:
    """Hugging Face's encoder and head transform under our losses on the reference ops, for checks,
    not for timing."""
    model = SpanBertForPreTraining(SpanBertConfig(**_sizes(case)))
    stock = BertForMaskedLM(BertConfig(**_sizes(case), attn_implementation=attention))
    model.bert, model.cls.predictions.transform = stock.bert, stock.cls.predictions.transform
    table = stock.bert.embeddings.word_embeddings.weight
    model.cls.predictions.decoder.weight = table

    def loss(batch: Batch) -> torch.Tensor:
        inputs = {name: tensor for name, tensor in batch.padded.items() if name != "labels"}
        hidden = model.bert(**inputs).last_hidden_state
        kept = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        targets = SpanTargets(*(batch.packed[name] for name in SpanTargets._fields))
        return model.cls(hidden[kept], table, targets).loss

    return Provider(model, {BOTH: loss}, "reference")


def _hugging_face(
    case: Case,
    attention: str,
    compiled: str | None = None,
    first: SDPBackend | None = None,
) -> Provider:
    """BertForMaskedLM; `compiled` is a mode of torch.compile, `first` the backend that
    scaled_dot_product_attention has to try first."""
    model = BertForMaskedLM(BertConfig(**_sizes(case), attn_implementation=attention))
    run = torch.compile(model, mode=compiled) if compiled else model
    others = [backend for backend in _BACKENDS if backend != first]

    def loss(batch: Batch) -> torch.Tensor:
        preferred: contextlib.AbstractContextManager = contextlib.nullcontext()
        if first is not None:
            preferred = sdpa_kernel([first, *others], set_priority=True)
        with preferred:
            return run(**batch.padded).loss

    return Provider(model, {MLM: loss})


_BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


def _masked_rows(case: Case) -> Provider:
    """Hugging Face's encoder, with its head on the labelled rows alone."""
    model = BertForMaskedLM(BertConfig(**_sizes(case), attn_implementation="sdpa"))

    def loss(batch: Batch) -> torch.Tensor:
        inputs = dict(batch.padded)
        labels = inputs.pop("labels")
        rows = model.bert(**inputs).last_hidden_state[labels != -100]
        return F.cross_entropy(model.cls(rows), labels[labels != -100])

    return Provider(model, {MLM: loss})


def _transformer_engine(case: Case) -> Provider:
    """BertForMaskedLM with TransformerEngine's attention (cuDNN's or flash-attn's, as it picks)."""
    from transformer_engine.pytorch import DotProductAttention
    from transformers import AttentionInterface

    heads = case.hidden_size // 64
    attend = DotProductAttention(
        heads, 64, attention_dropout=case.dropout, qkv_format="bshd", attn_mask_type="no_mask"
    )

    def attention(module, query, key, value, attention_mask, **unused):
        attend.train(module.training)
        return attend(*(t.transpose(1, 2) for t in (query, key, value))), None

    AttentionInterface.register("transformer_engine", attention)
    provider = _hugging_face(case, "transformer_engine")
    masked_lm = provider.losses[MLM]

    def loss(batch: Batch) -> torch.Tensor:
        if "attention_mask" in batch.padded:  # transformers gives an attention of ours no mask
            raise ValueError("lengths must be equal: this attention is given no mask")
        return masked_lm(batch)

    return Provider(provider.model, {MLM: loss})


OURS = "ours"
_sdpa = functools.partial(_hugging_face, attention="sdpa")
PROVIDERS: dict[str, Callable[[Case], Provider]] = {
    OURS: functools.partial(_ours, captured=True),
    "hf-eager": functools.partial(_hugging_face, attention="eager"),
    "hf-sdpa": _sdpa,
    "hf-eager-compiled": functools.partial(_hugging_face, attention="eager", compiled="default"),
    "hf-sdpa-compiled": functools.partial(_sdpa, compiled="default"),
    "hf-sdpa-masked-rows": _masked_rows,
    "reference": functools.partial(_ours, backend="reference"),
    "hf-sdpa-flash": functools.partial(_sdpa, first=SDPBackend.FLASH_ATTENTION),
    "hf-sdpa-cudnn": functools.partial(_sdpa, first=SDPBackend.CUDNN_ATTENTION),
    "ours-eager": _ours,
    "hf-sdpa-max-autotune": functools.partial(_sdpa, compiled="max-autotune"),
    "hf-transformer-engine": _transformer_engine,
}
# the default peers, the most important first, those that are slow to compile last
PEERS = {
    "cpu": ("hf-eager", "hf-sdpa", "hf-eager-compiled", "hf-sdpa-compiled", "hf-sdpa-masked-rows",
            "reference"),
    "cuda": ("hf-sdpa-flash", "hf-sdpa-cudnn", "ours-eager", "hf-transformer-engine",
             "hf-sdpa-max-autotune"),
}  # fmt: skip
_LIBRARIES = {"hf-transformer-engine": "transformer_engine.pytorch"}


def installed(name: str) -> bool:
    """Whether the library that a provider needs is installed."""
    library = _LIBRARIES.get(name)
    try:
        return library is None or importlib.import_module(library) is not None
    except (ImportError, OSError, RuntimeError):  # absent, or built for another torch or CUDA
        return False


def provider_of(name: str, case: Case) -> Provider:
    """One of `PROVIDERS`, on the case's device."""
    with torch.device(case.device):  # where weights are drawn in no time
        return PROVIDERS[name](case)


def lengths_of(documents: Sequence[str], batch: int, seqlen: int) -> tuple[int, ...]:
    """`batch` lengths, spread evenly over the lengths of `documents`, each cut at `seqlen`.

    A length counts words and punctuation marks, [CLS] and [SEP].
    """
    split = BertPreTokenizer().pre_tokenize_str
    counts = torch.tensor([len(split(document)) + 2 for document in documents])
    places = (torch.arange(batch) + 0.5) / batch
    lengths = counts.double().quantile(places.double()).long().clamp(3, seqlen)
    return tuple(lengths.tolist())
