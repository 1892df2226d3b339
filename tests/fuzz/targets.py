"""The targets of fuzzing: a good file of each kind, its mutation, and its reader."""

import argparse
import bz2
import gzip
import io
import json
import lzma
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import torch
from datasets import Dataset
from safetensors.torch import load_file

from fuzz.mutations import (
    Mutation,
    bytewise,
    either,
    in_json,
    in_json_lines,
    in_safetensors,
)
from spanbert_fast import digests
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.data.blocks import BlockDataset
from spanbert_fast.data.corpus import load_documents
from spanbert_fast.data.prepare import open_shards, prepare
from spanbert_fast.data.shards import Shard
from spanbert_fast.data.tokenizer import (
    load_tokenizer,
    tokenizer_fingerprint,
    train_wordpiece,
)
from spanbert_fast.data.words import word_start_table
from spanbert_fast.integrations.import_fairseq import import_fairseq
from spanbert_fast.models import SpanBertForPreTraining
from spanbert_fast.tasks import task_class
from spanbert_fast.training.finetuning.options import FinetuneOptions, options_of_run
from spanbert_fast.training.finetuning.run_directory import load_task, save_task
from spanbert_fast.training.pretraining.options import PretrainOptions, resumed_options


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        folder: the folder that each case copies.
        name: the file in it that is mutated.
        mutation: the function that mutates it.
        read: the reader, called with the copy of the folder.
    """

    folder: Path
    name: str
    mutation: Mutation
    read: Callable[[Path], object]


_BOTH = either(bytewise, in_json)
_LINES = either(bytewise, in_json_lines)

_SQUAD = {
    "version": "2",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "The river is long. It is cold.",
                    "qas": [
                        {
                            "id": str(i),
                            "question": "What?",
                            "is_impossible": i == 2,
                            "answers": [] if i == 2 else [{"text": "river", "answer_start": 4}],
                        }
                        for i in range(3)
                    ],
                }
            ],
        }
    ],
}
_MRQA = [
    {"header": {"dataset": "x"}},
    {
        "context": "The river is long.",
        "qas": [
            {
                "qid": "a",
                "question": "What?",
                "answers": ["river"],
                "detected_answers": [{"text": "river", "char_spans": [[4, 8]]}],
            }
        ],
    },
]
_TACRED = [
    {"id": str(i), "token": ["John", "met", "Mary"], "relation": relation}
    | {"subj_start": 0, "subj_end": 0, "subj_type": "PER"}
    | {"obj_start": 2, "obj_end": 2, "obj_type": "PER"}
    for i, relation in enumerate(("no_relation", "per:met", "per:met"))
]
_SCIERC = {
    "doc_key": "d",
    "sentences": [["A", "model", "of", "text"], ["It", "works"]],
    "ner": [[[0, 1, "Method"], [3, 3, "Material"]], [[4, 4, "Generic"]]],
    "relations": [[[0, 1, 3, 3, "USED-FOR"]], []],
}
_SEMEVAL = (
    '1\t"The <e1>river</e1> has a <e2>bank</e2>."\nComponent-Whole(e2,e1)\nComment: x\n\n'
    '2\t"A <e1>dog</e1> in a <e2>box</e2>."\nOther\nComment:\n'
)
_CONLL = "-DOCSTART-\tO\n\nJohn\tB-PER\nmet\tO\nMary\tB-PER\n\nOslo\tB-LOC\n"
_ROWS = [("text", "label"), ("a river, and", "1"), ("cold", "0"), ('"quoted"', "1")]


def _files() -> dict[str, tuple[str, Mutation, str, dict]]:
    """name -> (content, mutation, task, its options) of the tasks' files."""
    table = "".join('"{}",{}\n'.format(a.replace('"', '""'), b) for a, b in _ROWS)
    return {
        "squad.json": (json.dumps(_SQUAD), _BOTH, "qa", {}),
        "mrqa.jsonl": ("\n".join(map(json.dumps, _MRQA)), _LINES, "qa", {}),
        "ner.conll": (_CONLL, bytewise, "ner", {}),
        "texts.csv": (table, bytewise, "classify", {}),
        "texts.tsv": ("".join("\t".join(row) + "\n" for row in _ROWS), bytewise, "classify", {}),
        "texts.txt": ("1\ta river\n0\tcold\n", bytewise, "classify", {}),
        "texts.jsonl": (
            "\n".join(json.dumps({"text": a, "label": b}) for a, b in _ROWS[1:]),
            _LINES,
            "classify",
            {},
        ),
        "numbers.jsonl": (
            "\n".join(json.dumps({"text": a, "label": i}) for i, (a, _) in enumerate(_ROWS)),
            _LINES,
            "classify",
            {"regression": True},
        ),
        "tacred.json": (json.dumps(_TACRED), _BOTH, "relation", {}),
        "scierc.jsonl": (json.dumps(_SCIERC), _LINES, "relation", {}),
        "semeval.txt": (_SEMEVAL, bytewise, "relation", {}),
    }


def targets(root: Path) -> dict[str, Target]:
    """All targets; their good files are written under `root`."""
    found: dict[str, Target] = {}
    for name, (content, mutation, task, options) in _files().items():
        folder = root / name
        folder.mkdir()
        (folder / name).write_text(content)
        found[name] = Target(folder, name, mutation, _task_reader(task, name, options))

    texts = ["The river is long.\nIt is cold and old.", "A dog met Mary in Oslo."] * 4
    corpus = root / "corpus"
    corpus.mkdir()
    for name, content in (
        ("c.txt", "\n\n".join(texts).encode()),
        ("c.txt.gz", gzip.compress("\n\n".join(texts).encode(), mtime=0)),
        ("c.txt.xz", lzma.compress("\n\n".join(texts).encode())),
        ("c.txt.bz2", bz2.compress("\n\n".join(texts).encode())),
        ("c.txt.zst", pa.Codec("zstd").compress("\n\n".join(texts).encode(), asbytes=True)),
        ("c.parquet", _parquet(texts)),
        ("c.jsonl", "\n".join(json.dumps({"text": text}) for text in texts).encode()),
    ):
        (corpus / name).write_bytes(content)
        mutation = _LINES if name.endswith("jsonl") else bytewise
        found[name] = Target(corpus, name, mutation, lambda f, n=name: load_documents([f / n]))

    tokenizer = train_wordpiece(texts, 110)
    shards = root / "shards"
    prepare(Dataset.from_dict({"text": texts}), tokenizer, shards, shard_tokens=20, progress=False)
    found["corpus.json"] = Target(shards, "corpus.json", _BOTH, _read_shards)
    shard = "shard-00000.safetensors"
    found["shard"] = Target(
        shards, shard, in_safetensors, lambda f: _walk([Shard.open(f / shard, verify=True)])
    )
    found.update(_models(root, tokenizer))
    return found


def _parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": texts}), file)
    return file.getvalue()


def _models(root: Path, tokenizer) -> dict[str, Target]:
    torch.manual_seed(0)
    config = SpanBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        max_span_targets=3,
        span_position_embedding_size=4,
    )
    model = SpanBertForPreTraining(config)
    folders = {name: root / name for name in ("model", "released", "vocab", "fairseq", "run")}
    model.save_pretrained(folders["model"])
    tokenizer.save_pretrained(folders["model"])
    shutil.copytree(folders["model"], folders["released"])
    weights = folders["released"] / "model.safetensors"
    torch.save(load_file(weights), folders["released"] / "pytorch_model.bin")
    weights.unlink()
    folders["vocab"].mkdir()
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (folders["vocab"] / "vocab.txt").write_text("\n".join(words) + "\n")
    folders["fairseq"].mkdir()
    for name, zipped in (("model.pt", True), ("legacy.pt", False)):
        arguments = argparse.Namespace(arch="bert_pair", num_attention_heads=2)
        state = {f"decoder.{key}": value for key, value in _fairseq_state(model).items()}
        path = folders["fairseq"] / name
        content = {"args": arguments, "model": state}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    _run_files(folders["run"])

    def load(folder: Path) -> object:
        return SpanBertForPreTraining.from_pretrained(folder)

    def tokenize(folder: Path) -> object:
        loaded = load_tokenizer(folder)
        return tokenizer_fingerprint(loaded), word_start_table(loaded), loaded("The river")

    def convert(name: str) -> Callable[[Path], object]:
        return lambda folder: import_fairseq(folder / name, folder / "out")

    model_folder, run = folders["model"], folders["run"]
    return {
        "config.json": Target(model_folder, "config.json", _BOTH, load),
        "model.safetensors": Target(model_folder, "model.safetensors", in_safetensors, load),
        "pytorch_model.bin": Target(folders["released"], "pytorch_model.bin", bytewise, load),
        "tokenizer.json": Target(model_folder, "tokenizer.json", _BOTH, tokenize),
        "tokenizer_config.json": Target(model_folder, "tokenizer_config.json", _BOTH, tokenize),
        "vocab.txt": Target(folders["vocab"], "vocab.txt", bytewise, tokenize),
        "model.pt": Target(folders["fairseq"], "model.pt", bytewise, convert("model.pt")),
        "legacy.pt": Target(folders["fairseq"], "legacy.pt", bytewise, convert("legacy.pt")),
        "task.json": Target(run, "task.json", _BOTH, load_task),
        "options.json": Target(
            run / "finetune", "options.json", _BOTH, lambda f: options_of_run(str(f))
        ),
        "pretrain-options.json": Target(
            run / "pretrain", "options.json", _BOTH, lambda f: resumed_options(str(f), {}, 1)
        ),
        "digests.json": Target(run / "digests", "digests.json", _BOTH, _damage),
    }


def _run_files(run: Path) -> None:
    for name in ("finetune", "pretrain", "digests"):
        (run / name).mkdir(parents=True)
    save_task(task_class("ner")(labels=["O", "B-X", "I-X"]), run)
    data = run / "finetune" / "data.conll"
    data.write_text(_CONLL)
    options = FinetuneOptions("ner", str(run), str(data), str(data), str(run / "finetune"))
    (run / "finetune" / "options.json").write_text(json.dumps(options.to_json()))
    pretraining = PretrainOptions("x", overrides={"hidden_size": 96, "learning_rate": 0.1})
    (run / "pretrain" / "options.json").write_text(json.dumps(pretraining.to_json(1)))
    (run / "digests" / "a.bin").write_bytes(b"abc")
    digests.write_digests(run / "digests")


def _damage(folder: Path) -> object:
    digests.another_config(folder, SpanBertConfig())
    return digests.damage(folder)


def _fairseq_state(model: SpanBertForPreTraining) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in model.state_dict().items():
        if "decoder" in name and "span_boundary" not in name:
            continue
        name = name.replace("cls.span_boundary.", "cls.pair_target_predictions.")
        for part in ("linear1", "linear2", "layer_norm1", "layer_norm2"):
            name = name.replace(f"_predictions.{part}", f"_predictions.mlp_layer_norm.{part}")
        state[name] = tensor
    return state


def _task_reader(task: str, name: str, options: dict) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        skip_bad = len((folder / name).read_bytes()) % 2 == 0
        made = task_class(task)(**options)
        examples = made.read(folder / name, skip_bad=skip_bad).items
        made.learn(examples)
        return made.check_labels(examples, folder / name, skip_bad=skip_bad)

    return read


def _read_shards(folder: Path) -> object:
    return _walk(open_shards(folder))


def _walk(shards: list[Shard]) -> object:
    blocks = BlockDataset(shards, cls_token_id=2, sep_token_id=3, max_seq_length=12)
    for index in range(len(blocks)):
        blocks[index]
    return blocks.unigram_counts()
