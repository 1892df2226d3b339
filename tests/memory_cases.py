"""Run by `test_memory.py` in a process of its own: inputs that would fill memory, each under a
limit of the address space. Prints a JSON object: case -> outcome."""

import bz2
import gzip
import json
import lzma
import resource
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch

from spanbert_fast.data import prepare as prepare_module
from spanbert_fast.data.corpus import load_documents
from spanbert_fast.data.prepare import open_shards, prepare
from spanbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
from spanbert_fast.errors import DataError
from spanbert_fast.integrations.import_fairseq import import_fairseq
from spanbert_fast.models import SpanBertModel
from spanbert_fast.tasks import task_class

MIB = 1 << 20
WORDS = "the river is long and the garden is old "


def bombs(folder: Path) -> dict[str, Path]:
    """Files of some kilobytes that expand to half a gigabyte, each in one member or frame."""
    part = b"a" * (16 * MIB)
    codec = pa.Codec("zstd")
    compress = {
        "gz": lambda data: gzip.compress(data, 1),
        "xz": lambda data: lzma.compress(data, preset=0),
        "bz2": lambda data: bz2.compress(data, 1),
        "zst": lambda data: codec.compress(data, asbytes=True),
    }
    found = {}
    for suffix, function in compress.items():
        found[f"line {suffix}"] = path = folder / f"line.txt.{suffix}"
        path.write_bytes(function(part) * 32)
    found["lines xz"] = path = folder / "lines.txt.xz"
    path.write_bytes(compress["xz"](b"a b\n" * (4 * MIB)) * 32)
    return found


def zip_bomb(folder: Path) -> Path:
    """A file of torch.save with compressed members; torch itself does not compress them."""
    source, path = folder / "plain.pt", folder / "bomb.pt"
    torch.save({"model": {"decoder.x": torch.zeros(64 * MIB)}}, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), compresslevel=1)
    source.unlink()
    return path


def long_line(folder: Path) -> Path:
    path = folder / "long.txt"
    path.write_text(WORDS * (6 * MIB // len(WORDS)))
    return path


def long_documents(folder: Path) -> Path:
    path = folder / "books.txt"
    book = (WORDS * 25 + "\n") * (32 * MIB // (25 * len(WORDS)))
    with path.open("w") as file:
        for _ in range(6):
            file.write(book + "\n")
    return path


def large_config(folder: Path, **fields) -> Path:
    """A checkpoint whose config.json says more than its weights hold."""
    from spanbert_fast.config import SpanBertConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SpanBertConfig(**sizes, intermediate_size=16, vocab_size=20)
    SpanBertModel(config).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def tokenizer_with(folder: Path, index: int) -> Path:
    train_wordpiece([WORDS] * 2, 60).save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["beyond"] = index
    path.write_text(json.dumps(content))
    return folder


def tokenise_long_line(path: Path, folder: Path) -> int:
    prepare_module._BATCH_CHARACTERS = 1 << 19
    tokenizer = train_wordpiece([WORDS] * 2, 60)
    prepare(load_documents([path]), tokenizer, folder, progress=False)
    (shard,) = open_shards(folder)
    assert len(shard.line_offsets) == 2, "one line, as it was"
    return shard.num_tokens


def limited(mebibytes: int, function: Callable[[], object]) -> dict:
    """The outcome of a function if the process may take only so much more memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + mebibytes * MIB
    began = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        result = {"result": repr(function())[:200]}
    except Exception as error:
        result = {"error": type(error).__name__, "message": str(error)}
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    if result.get("error") == DataError.__name__:
        result["refused"] = True
    return {**result, "seconds": time.process_time() - began}


def cases(folder: Path) -> dict[str, tuple[int, Callable[[], object]]]:
    """name -> (MiB, function)."""
    folders = [folder / str(number) for number in range(6)]
    for path in folders:
        path.mkdir()
    long, books, bomb = long_line(folder), long_documents(folder), zip_bomb(folder)
    found = {
        name: (320, lambda p=path: load_documents([p])) for name, path in bombs(folder).items()
    }
    entities = task_class("ner")()
    lines = folder / "lines.txt.xz"
    return found | {
        "task file": (640, lambda: entities.read(lines)),
        # 720 MiB and 1,300 MiB before lines were cut and documents written by their size
        "long line": (320, lambda: tokenise_long_line(long, folders[0])),
        "long documents": (500, lambda: len(load_documents([books]))),
        "zip bomb": (128, lambda: import_fairseq(bomb, folders[1] / "out")),
        "layers": (
            256,
            lambda: SpanBertModel.from_pretrained(
                large_config(folders[2], num_hidden_layers=10**9)
            ),
        ),
        "vocabulary": (
            256,
            lambda: SpanBertModel.from_pretrained(
                large_config(folders[3], vocab_size=1 << 24, hidden_size=1 << 16)
            ),
        ),
        "id 2^31": (256, lambda: load_tokenizer(tokenizer_with(folders[4], 2**31))),
        "id 2^32": (256, lambda: load_tokenizer(tokenizer_with(folders[5], 2**32))),
    }


if __name__ == "__main__":
    # load and start here what the first use would load or start
    train_wordpiece([WORDS] * 2, 60)("the")
    print(json.dumps({name: limited(*case) for name, case in cases(Path(sys.argv[1])).items()}))
