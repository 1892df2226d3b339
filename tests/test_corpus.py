"""Every format of a corpus gives the same documents, and a broken file is named in the error."""

import gzip
import json
import logging
import lzma
import os
import pickle
import re
import tempfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from spanbert_fast.data.corpus import load_documents
from spanbert_fast.data.embedded import embedded_documents
from spanbert_fast.data.text_files import pieces
from spanbert_fast.errors import DataError, UsageError

DOCUMENTS = ["One line.\nAnother, with é and 漢.", "A second document.", "Third.\nIts end."]
TEXT = "\n\n".join(DOCUMENTS) + "\n"


def zstd(content: bytes) -> bytes:
    """Compress into two frames, as a parallel compressor does."""
    half = len(content) // 2
    codec = pa.Codec("zstd")
    parts = (content[:half], content[half:])
    return b"".join(codec.compress(part, asbytes=True) for part in parts)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(*paths: Path) -> list[str]:
    return list(load_documents(paths)["text"])


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_text_and_jsonl_give_their_documents(tmp_path, form, compression):
    jsonl = "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(DOCUMENTS))
    content = {"txt": TEXT, "jsonl": jsonl}[form].encode()
    path = write(tmp_path / f"a.{form}{compression}", COMPRESS[compression](content))
    documents = load_documents([path])
    assert documents.column_names == ["text"]
    assert list(documents["text"]) == DOCUMENTS


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_and_saved_datasets_give_their_documents(tmp_path, kind):
    table = pa.table({"n": range(3), "text": pa.array(DOCUMENTS, kind)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == DOCUMENTS
    datasets.Dataset.from_dict({"text": DOCUMENTS}).save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved") == DOCUMENTS


def test_lines_are_as_they_were_and_any_run_of_blank_lines_is_one_boundary(tmp_path):
    content = "\ufeff\r\n \t\r\n  One line. \r\nAnother.\n\n\t\n\nSecond\u2028same line\n\n\n"
    path = write(tmp_path / "a.text", content)
    assert texts(path) == ["  One line. \nAnother.", "Second\u2028same line"]


def test_files_come_in_the_order_given_and_end_documents(tmp_path):
    first, second = write(tmp_path / "b.txt", "first"), write(tmp_path / "a.txt", "second\n\nthird")
    assert texts(first, second) == ["first", "second", "third"]
    assert texts(second, first) == ["second", "third", "first"]
    # a directory's files are read in order of their names; others are not part of the corpus
    write(tmp_path / "c.txt.gz", gzip.compress(b"fourth"))
    write(tmp_path / "README.md", "not text of the corpus")
    assert texts(tmp_path) == ["second", "third", "first", "fourth"]


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "a.txt", "before")
    assert texts(path) == ["before"]
    write(path, "after")
    assert texts(path) == ["after"]


def test_jsonl_documents_keep_their_paragraphs(tmp_path):
    path = write(tmp_path / "a.jsonl", '\n{"text": "a\\n\\nb"}\n\n{"text": " \\n"}\n')
    assert texts(path) == ["a\nb"]


def test_the_temporary_table_has_no_name(tmp_path, monkeypatch):
    """It disappears with the process, however that ends; its rows are mapped from the file."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    documents = load_documents([write(tmp_path / "a.txt", TEXT)])
    assert list(scratch.iterdir()) == [] and list(documents["text"]) == DOCUMENTS
    with open("/proc/self/maps") as maps:
        assert any(str(scratch) in line and "(deleted)" in line for line in maps)
    again = pickle.loads(pickle.dumps(documents))
    assert list(again["text"]) == DOCUMENTS


def test_a_line_has_a_limit_and_a_document_is_cut_at_it(tmp_path, caplog, monkeypatch):
    path = write(tmp_path / "a.txt", "one\ntwo\n" + "x" * 30 + "\n")
    with pytest.raises(DataError, match=r"a\.txt: line 3 must .* 30 bytes.*; --max-line-bytes"):
        load_documents([path], max_line_bytes=30)
    monkeypatch.setattr(logging.getLogger("spanbert_fast"), "propagate", True)
    path = write(tmp_path / "b.txt", "one\ntwo\nthree\nfour\n\nfive\n")
    assert list(load_documents([path], max_line_bytes=14)["text"]) == [
        "one\ntwo\nthree",
        "four",
        "five",
    ]
    assert caplog.text.count("b.txt: a document has more than 14 characters, and becomes") == 1
    path = write(tmp_path / "c.jsonl", json.dumps({"text": "y" * 40}))
    with pytest.raises(DataError, match=r"c\.jsonl: line 1 must have at most 40 bytes"):
        load_documents([path], max_line_bytes=40)
    pyarrow.parquet.write_table(pa.table({"text": ["fine", "z" * 41]}), tmp_path / "d.parquet")
    datasets.Dataset.from_dict({"text": ["fine", "z" * 41]}).save_to_disk(tmp_path / "d")
    for name in ("d.parquet", "d"):
        with pytest.raises(DataError, match=f"{name}: a row's text must have at most 40 .*41"):
            load_documents([tmp_path / name], max_line_bytes=40)


def test_parts_of_a_text_are_cut_before_blanks():
    text = "ab cde f\nghijkl " + "m" * 12
    for most in range(1, 30):
        parts = list(pieces(text, most))
        assert "".join(parts) == text and max(map(len, parts)) <= most
        words = [word for part in parts for word in part.split()]
        assert most <= 12 or words == text.split()


@pytest.mark.parametrize("compression", COMPRESS)
def test_undecodable_bytes_are_named_with_their_offset(tmp_path, compression):
    content = "é good\n".encode() * 5000 + b"bad \xff byte\n" + b"good\n" * 5000
    path = write(tmp_path / f"a.txt{compression}", COMPRESS[compression](content))
    with pytest.raises(DataError, match=rf"a\.txt{compression}: not UTF-8 at byte 40004 .*0xff"):
        load_documents([path])


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_truncated_and_false_compression_is_named(tmp_path, compression):
    content = os.urandom(200_000).hex().encode()
    whole = COMPRESS[compression](content)
    for number, broken in enumerate((whole[: len(whole) // 3], whole[:-1], b"not compressed")):
        path = write(tmp_path / f"{number}.txt{compression}", broken)
        with pytest.raises(DataError, match=rf"{number}\.txt{compression}: cannot be read after"):
            load_documents([path])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', 'a.jsonl, line 2: needs .* "text"'),
        ("a.jsonl", '{"text": 3}\n', 'a.jsonl, line 1: needs .* "text"'),
        ("a.jsonl", '["text"]\n', 'a.jsonl, line 1: needs .* "text"'),
        ("a.jsonl", '{"text": "a"}\n\n{"text"\n', "a.jsonl, line 3: not JSON"),
        ("a.jsonl", '{"text": "a", "n": ' + "1" * 5000 + "}\n", "a.jsonl, line 1: not JSON"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: not JSON"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "a.jsonl, line 1: half a surrogate pair"),
        ("a.parquet", "not parquet", "a.parquet: not a readable parquet file"),
        ("a.txt", "", "the corpus is empty: no text in .*a.txt"),
        ("a.txt", " \n\n\t\n", "the corpus is empty"),
        ("a.jsonl", "", "the corpus is empty"),
    ],
)
def test_bad_content_is_named(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        load_documents([path])
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_counts_in_an_offset(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfab\xff\n")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 at byte 5 of the file \(0xff"):
        load_documents([path])


def test_a_truncated_saved_dataset_is_named(tmp_path):
    datasets.Dataset.from_dict({"text": DOCUMENTS}).save_to_disk(tmp_path / "saved")
    (table,) = (tmp_path / "saved").glob("*.arrow")
    table.write_bytes(table.read_bytes()[:200])
    with pytest.raises(DataError, match="saved: not a readable Hugging Face dataset") as caught:
        load_documents([tmp_path / "saved"])
    assert "\n" not in str(caught.value)


def test_bad_tables_are_named(tmp_path):
    for number, (column, values, message) in enumerate(
        (
            ("content", ["a"], "no column `text`, only content"),
            ("text", [1], "must hold strings, got int64"),
            ("text", ["a", None], "rows without a value"),
        )
    ):
        table = pa.table({column: values})
        pyarrow.parquet.write_table(table, tmp_path / f"{number}.parquet")
        datasets.Dataset(table).save_to_disk(tmp_path / f"{number}.saved")
        for name in (f"{number}.parquet", f"{number}.saved"):
            with pytest.raises(DataError, match=f"{name}: .*{message}"):
                load_documents([tmp_path / name])
    splits = datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]}))
    splits.save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match="splits: holds the splits train; name one"):
        load_documents([tmp_path / "splits"])
    assert texts(tmp_path / "splits" / "train") == ["a"]


def test_missing_paths_are_a_usage_error(tmp_path):
    present = write(tmp_path / "a.txt", "text")
    with pytest.raises(UsageError, match="missing.txt: no such file or directory"):
        load_documents([present, tmp_path / "missing.txt"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="folder: a directory with no .txt, .jsonl, .parquet"):
        load_documents([tmp_path / "folder"])


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.md", "a", "a.zip", "a.txt.lz4"])
def test_an_unknown_suffix_is_not_read_as_text(tmp_path, name):
    path = write(tmp_path / name, "id,text\n1,some words\n")
    with pytest.raises(UsageError, match=r"must be one of \.txt, .*\.gz, .* behind it, got"):
        load_documents([path])


def test_a_suffix_may_be_in_capitals(tmp_path):
    assert texts(write(tmp_path / "A.TXT", TEXT)) == DOCUMENTS
    assert texts(write(tmp_path / "B.TXT.gz", gzip.compress(TEXT.encode()))) == DOCUMENTS


def test_embedded_documents_are_english_prose():
    documents = embedded_documents()
    assert len(documents) > 300
    assert 1_000_000 < sum(map(len, documents)) < 4_000_000
    paragraphs = [line for document in documents for line in document.split("\n")]
    assert all(line == line.strip() and line for line in paragraphs)
    assert len(set(paragraphs)) == len(paragraphs)
    words = re.findall(r"[a-z]+", " ".join(paragraphs).lower())
    # about 5 % of English words are "the"
    assert 0.03 < words.count("the") / len(words) < 0.10
