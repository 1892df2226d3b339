"""Import of the original SpanBERT training checkpoints (fairseq's `model.pt`), without loss.

Such a file is a pickled dict: `model` maps names under `decoder.` to tensors, `args` is the
argparse.Namespace of the run, and the rest (optimizer, meters) is not read. The names are those
of BERT with norms called gamma and beta; the span boundary head is `cls.pair_target_predictions`.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.integrations.fairseq_file import read_checkpoint
from spanbert_fast.models import SpanBertForPreTraining

WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
_SPAN_HEAD = "cls.span_boundary."
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Names in the original, without `decoder.`, and their names here.
_RENAMINGS = (
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"^cls\.pair_target_predictions\.(mlp_layer_norm\.)?", _SPAN_HEAD),
)
_TIED = re.compile(r"^cls\.(predictions|span_boundary)\.decoder\.weight$")
_DROPPED = re.compile(r"^cls\.seq_relationship\.(weight|bias)$")  # next sentence prediction
_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.")
_POOLER = re.compile(r"^bert\.pooler\.dense\.(weight|bias)$")  # kept for the task heads


@dataclasses.dataclass(frozen=True)
class ImportedCheckpoint:
    """What became of each tensor of the file.

    Attributes:
        config: the configuration that was deduced and written.
        renamed: name in the file -> name in the new checkpoint.
        tied: tensors that equal the word embeddings, and are stored once.
        dropped: tensors that SpanBERT has no place for (the next-sentence head).
        notes: arguments of the run by which its function differed from the one here.
    """

    config: SpanBertConfig
    renamed: dict[str, str]
    tied: tuple[str, ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{len(self.renamed)} tensors imported",
                *(f"tied to the word embeddings: {name}" for name in self.tied),
                *(f"dropped: {name}" for name in self.dropped),
                *(f"not reproduced: {note}" for note in self.notes),
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
        UsageError: a path does not exist, or output_dir is not empty.
        DataError: the file is corrupt or not such a checkpoint, a tensor is missing, unexpected, of
            another shape or not finite, an argument of the run asks for a function that the model
            does not have, or the vocabulary does not fit.
    """
    model_pt, output_dir = Path(model_pt), Path(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise UsageError(f"output_dir must not exist or be empty, got {output_dir}")
    args, tensors = read_checkpoint(model_pt)
    arguments = _Arguments(args)
    try:
        state_dict, renamed, tied, dropped = _rename(tensors)
        config = _deduce_config(arguments, state_dict)
        _check_complete(state_dict, renamed, config)
    except (ValueError, TypeError) as error:  # of the configuration's class, too
        raise DataError(f"{model_pt}: {' '.join(str(error).split())}") from error
    vocabulary = None if tokenizer is None else _read_tokenizer(Path(tokenizer), config)

    if vocabulary is not None:
        vocabulary.save_pretrained(output_dir)
        config.pad_token_id = vocabulary.pad_token_id
    config.save_pretrained(output_dir)
    # half precision is widened: exact, and what fine-tuning starts from
    contiguous = {name: tensor.float().contiguous() for name, tensor in state_dict.items()}
    save_file(contiguous, output_dir / "model.safetensors", metadata={"format": "pt"})
    return ImportedCheckpoint(config, renamed, tied, dropped, _not_reproduced(arguments))


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


class _Arguments:
    """The run's arguments; if there is args.config, the run made its model from that."""

    def __init__(self, args: Any):
        self.holders = (getattr(args, "config", None), args)

    def __call__(self, name: str, default: Any = None) -> Any:
        """The value of an argument, or the default if it is not given."""
        values = (getattr(holder, name, None) for holder in self.holders)
        return next((value for value in values if value is not None), default)


def _not_reproduced(argument: _Arguments) -> tuple[str, ...]:
    notes = []
    if argument("clamp_attention"):
        bound = "32,000" if "hf" in str(argument("arch")) else "10,000"
        notes.append(
            f"clamp_attention: attention scores beyond +-{bound} were cut there and are not here; "
            "where none is as large, the function is the same"
        )
    return tuple(notes)


def _norm_eps(argument: _Arguments, has_span_head: bool) -> float:
    """The eps of the layer norms, which differs between the original's two models."""
    arch = argument("arch")
    if arch is None:
        return 1e-12 if has_span_head else 1e-5
    kinds = {"bert_pair": 1e-12, "bert_hf": 1e-5}
    found = [eps for kind, eps in kinds.items() if kind in str(arch)]
    if len(found) != 1:
        raise DataError(f"arch must be one of {', '.join(kinds)} and theirs, got {arch}")
    if has_span_head and found[0] != kinds["bert_pair"]:
        raise DataError(f"arch must be one of bert_pair with a span boundary head, got {arch}")
    return found[0]


def _deduce_config(argument: _Arguments, state_dict: dict[str, torch.Tensor]) -> SpanBertConfig:
    """The configuration, from the tensors' shapes and the run's arguments."""

    def shape(name: str) -> torch.Size:
        if name not in state_dict:
            raise DataError(f"model_pt lacks the tensor decoder.{name}")
        return state_dict[name].shape

    if len(shape(WORD_EMBEDDINGS)) != 2:
        raise DataError(f"decoder.{WORD_EMBEDDINGS} must have two dimensions")
    vocab_size, hidden_size = shape(WORD_EMBEDDINGS)
    layers = {found[1] for name in state_dict if (found := _LAYER.match(name))}
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": len(layers),
        "intermediate_size": shape("bert.encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": shape("bert.embeddings.position_embeddings.weight")[0],
        "type_vocab_size": shape("bert.embeddings.token_type_embeddings.weight")[0],
    }
    for name, size in sizes.items():
        # the rows of the embeddings are the vocabulary's, whatever the dictionary's size was
        if name != "vocab_size" and argument(name, size) != size:
            raise DataError(f"{name} must be that of the tensors, {size}, got {argument(name)}")
    has_span_head = any(name.startswith(_SPAN_HEAD) for name in state_dict)
    fields = {
        **sizes,
        "num_attention_heads": argument("num_attention_heads", max(hidden_size // 64, 1)),
        "hidden_act": argument("hidden_act", "gelu"),
        "hidden_dropout_prob": argument("hidden_dropout_prob", 0.1),
        "attention_probs_dropout_prob": argument("attention_probs_dropout_prob", 0.1),
        "layer_norm_eps": _norm_eps(argument, has_span_head),
    }
    if has_span_head:
        layer = argument("pair_target_layer", -1)
        if layer not in (-1, len(layers) - 1):
            raise DataError(f"pair_target_layer must be the last layer (-1), got {layer}")
        endpoints = argument("endpoints", "external")
        if endpoints != "external":
            raise DataError(f'endpoints must be "external", got "{endpoints}"')
        places, size = shape(f"{_SPAN_HEAD}position_embeddings.weight")
        fields |= {
            "max_span_targets": places,
            "span_position_embedding_size": size,
            "sbo_weight": float(argument("pair_loss_weight", 1.0)),
            "sbo_denominator_offset": 1,  # the loss that the run has minimised (contract C2)
        }
    return SpanBertConfig(**fields, architectures=["SpanBertForPreTraining"])


def _check_complete(
    state_dict: dict[str, torch.Tensor], renamed: dict[str, str], config: SpanBertConfig
) -> None:
    """Raise unless the tensors are those of a SpanBertForPreTraining, each with its shape."""
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
        counted = [match for line in lines if (match := re.fullmatch(r"(\S+) \d+", line))]
        tokens = [match[1] for match in counted] if len(counted) == len(lines) else lines
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
