"""Import of the original SpanBERT training checkpoints (fairseq's `model.pt`), without loss.

Such a file is a pickled dict: `model` maps names under `decoder.` to tensors, `args` is the
argparse.Namespace of the run, and the rest (optimizer, meters) is not read. The names are those
of BERT with norms called gamma and beta; the span boundary head is `cls.pair_target_predictions`.
"""

import contextlib
import dataclasses
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.models import SpanBertForPreTraining
from spanbert_fast.models.base import UNREADABLE, first_line

WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
_SPAN_HEAD = "cls.span_boundary."
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Names of the original, without `decoder.`, and what they are called here.
_RENAMINGS = (
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"^cls\.pair_target_predictions\.(mlp_layer_norm\.)?", _SPAN_HEAD),
)
_TIED = re.compile(r"^cls\.(predictions|span_boundary)\.decoder\.weight$")
_DROPPED = re.compile(r"^cls\.seq_relationship\.(weight|bias)$")  # next sentence prediction
_POOLER = re.compile(r"^bert\.pooler\.dense\.(weight|bias)$")  # kept for the task heads


@dataclasses.dataclass(frozen=True)
class ImportedCheckpoint:
    """What became of every tensor of the file, under its name in the file.

    Attributes:
        config: the configuration that was deduced and written.
        renamed: name in the file -> name in the new checkpoint.
        tied: tensors that equal the word embeddings, and are stored once.
        dropped: tensors that SpanBERT has no place for (the next-sentence head).
    """

    config: SpanBertConfig
    renamed: dict[str, str]
    tied: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{len(self.renamed)} tensors imported",
                *(f"tied to the word embeddings: {name}" for name in self.tied),
                *(f"dropped: {name}" for name in self.dropped),
            ]
        )


def import_fairseq(
    model_pt: str | Path, output_dir: str | Path, tokenizer: str | Path | None = None
) -> ImportedCheckpoint:
    """Write the checkpoint of an original training run as a `from_pretrained` directory.

    Args:
        model_pt: the file. It is unpickled with weights_only=True; classes that it names are
            replaced by inert stand-ins, so no code of the file or of fairseq runs.
        output_dir: directory to write (config.json, model.safetensors, the tokenizer); must not
            exist, or be empty.
        tokenizer: vocab.txt, the run's dict.txt ("token count" per line), or a tokenizer
            directory. Row i of the embeddings belongs to line i: fairseq's BERT dictionary adds no
            symbol of its own, so rows need no permutation.

    Raises:
        UsageError: a path is not there, or output_dir holds something.
        DataError: the file is corrupt or no such checkpoint, a tensor is missing, left over or of
            another shape, or the vocabulary does not fit.
    """
    model_pt, output_dir = Path(model_pt), Path(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise UsageError(f"output_dir must not exist or be empty, got {output_dir}")
    args, tensors = _read(model_pt)
    state_dict, renamed, tied, dropped = _rename(tensors)
    config = _deduce_config(args, state_dict)
    _check_complete(state_dict, renamed, config)
    vocabulary = None if tokenizer is None else _read_tokenizer(Path(tokenizer), config)

    if vocabulary is not None:
        vocabulary.save_pretrained(output_dir)
        config.pad_token_id = vocabulary.pad_token_id
    config.save_pretrained(output_dir)
    # half precision is widened: exact, and what fine-tuning starts from
    contiguous = {name: tensor.float().contiguous() for name, tensor in state_dict.items()}
    save_file(contiguous, output_dir / "model.safetensors", metadata={"format": "pt"})
    return ImportedCheckpoint(config, renamed, tied, dropped)


class _StandIn:
    """In place of any class that the file names: holds attributes, runs nothing."""

    def __new__(cls, *args: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


@contextlib.contextmanager
def _pickle_of(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """(stream, number of pickles up to the object), for both formats that torch.save has had."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(name) as stream:
                yield stream, 1
    else:  # before torch 1.6: magic number, protocol and system come first
        with path.open("rb") as stream:
            yield stream, 4


def _classes_named_in(path: Path) -> set[str]:
    """Full names of the classes and functions that the pickle refers to; nothing is executed."""
    names = set()
    with _pickle_of(path) as (stream, pickles):
        for _ in range(pickles):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    names.add(argument.replace(" ", "."))
    return names


def _read(path: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """(args or None, tensors) of a training checkpoint."""
    if not path.is_file():
        raise UsageError(f"model_pt must be a file, got {path}")
    try:
        stand_ins = [(_StandIn, name) for name in _classes_named_in(path)]
        with torch.serialization.safe_globals(stand_ins):  # torch's own classes come first
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (*UNREADABLE, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"model_pt cannot be read: {path}: {first_line(error)}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise DataError(f"model_pt must hold a dict with the key 'model', got {path}")
    tensors = checkpoint["model"]
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise DataError(f"{name} must be a floating tensor in {path}, got {type(tensor)}")
    return checkpoint.get("args"), tensors


def _rename(
    tensors: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """(state dict, name in the file -> new name, names of tied and of dropped tensors)."""
    state_dict, renamed, tied, dropped = {}, {}, [], []
    for original, tensor in tensors.items():
        if not original.startswith("decoder."):
            raise DataError(f"every tensor's name must start with 'decoder.', got {original}")
        name = original.removeprefix("decoder.")
        for pattern, replacement in _RENAMINGS:
            name = re.sub(pattern, replacement, name)
        if _DROPPED.match(name):
            dropped.append(original)
        elif _TIED.match(name):
            words = tensors.get(f"decoder.{WORD_EMBEDDINGS}")
            if words is None or not torch.equal(tensor, words):
                raise DataError(f"{original} must equal decoder.{WORD_EMBEDDINGS}, its tied weight")
            tied.append(original)
        else:
            state_dict[name], renamed[original] = tensor, name
    return state_dict, renamed, tuple(tied), tuple(dropped)


def _deduce_config(args: Any, state_dict: dict[str, torch.Tensor]) -> SpanBertConfig:
    """The configuration, from the tensors' shapes and what the run's arguments add to them."""

    def shape(name: str) -> torch.Size:
        if name not in state_dict:
            raise DataError(f"model_pt lacks the tensor decoder.{name}")
        return state_dict[name].shape

    def argument(name: str, default: Any) -> Any:
        for holder in (args, getattr(args, "config", None)):
            if getattr(holder, name, None) is not None:
                return getattr(holder, name)
        return default

    vocab_size, hidden_size = shape(WORD_EMBEDDINGS)
    layers = {int(n.split(".")[3]) for n in state_dict if n.startswith("bert.encoder.layer.")}
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": len(layers),
        "num_attention_heads": argument("num_attention_heads", max(hidden_size // 64, 1)),
        "intermediate_size": shape("bert.encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": shape("bert.embeddings.position_embeddings.weight")[0],
        "type_vocab_size": shape("bert.embeddings.token_type_embeddings.weight")[0],
        "hidden_act": argument("hidden_act", "gelu"),
        "hidden_dropout_prob": argument("hidden_dropout_prob", 0.1),
        "attention_probs_dropout_prob": argument("attention_probs_dropout_prob", 0.1),
        # the original model without a span boundary head normalises with another eps
        "layer_norm_eps": 1e-5,
    }
    if any(name.startswith(_SPAN_HEAD) for name in state_dict):
        layer = argument("pair_target_layer", -1)
        if layer not in (-1, len(layers) - 1):
            raise DataError(f"pair_target_layer must be the last layer (-1), got {layer}")
        endpoints = argument("endpoints", "external")
        if endpoints != "external":
            raise DataError(f'endpoints must be "external", got "{endpoints}"')
        places, size = shape(f"{_SPAN_HEAD}position_embeddings.weight")
        fields |= {
            "layer_norm_eps": 1e-12,
            "max_span_targets": places,
            "span_position_embedding_size": size,
            "sbo_weight": float(argument("pair_loss_weight", 1.0)),
            "sbo_denominator_offset": 1,  # the loss that the run has minimised (contract C2)
        }
    return SpanBertConfig(**fields, architectures=["SpanBertForPreTraining"])


def _check_complete(
    state_dict: dict[str, torch.Tensor], renamed: dict[str, str], config: SpanBertConfig
) -> None:
    """Raise unless the tensors are those of a SpanBertForPreTraining, each in its shape."""
    with torch.device("meta"):
        expected = SpanBertForPreTraining(config).state_dict()
    tied = set(SpanBertForPreTraining._tied_weights_keys)
    originals = {name: original for original, name in renamed.items()}
    for name, tensor in state_dict.items():
        if _POOLER.match(name):
            continue
        if name not in expected:
            raise DataError(f"model_pt holds a tensor with no place: {originals[name]}")
        if tensor.shape != expected[name].shape:
            raise DataError(
                f"{originals[name]} must have shape {tuple(expected[name].shape)}, "
                f"got {tuple(tensor.shape)}"
            )
    has_span_head = any(name.startswith(_SPAN_HEAD) for name in state_dict)
    for name in expected:
        optional = name in tied or (name.startswith(_SPAN_HEAD) and not has_span_head)
        if name not in state_dict and not optional:
            raise DataError(f"model_pt lacks the tensor of {name}")


def _read_tokenizer(path: Path, config: SpanBertConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory, a vocab.txt or a dict.txt; raises unless it fits the rows."""
    if path.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(path)
    elif path.is_file():
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        counted = [re.fullmatch(r"(\S+) \d+", line) for line in lines]
        tokens = [match[1] for match in counted] if all(counted) else lines
        vocabulary = {token: index for index, token in enumerate(tokens)}
        if len(vocabulary) != len(tokens):
            twice = next(token for index, token in enumerate(tokens) if vocabulary[token] != index)
            raise DataError(f"every token of {path} must be there once, got {twice!r} twice")
        absent = [token for token in _SPECIAL_TOKENS if token not in vocabulary]
        if absent:
            raise DataError(f"{path} must hold {', '.join(_SPECIAL_TOKENS)}; it lacks {absent[0]}")
        words = (token for token in tokens if not token.startswith("["))
        cased = any(word != word.lower() for word in words)
        tokenizer = BertTokenizer(
            vocab=vocabulary,
            do_lower_case=not cased,
            model_max_length=config.max_position_embeddings,
        )
    else:
        raise UsageError(f"tokenizer must be a file or a directory, got {path}")
    size = max(tokenizer.get_vocab().values()) + 1
    if size > config.vocab_size:
        raise DataError(
            f"tokenizer must not have more tokens than the embeddings have rows = "
            f"{config.vocab_size}, got {size} in {path}"
        )
    return tokenizer
