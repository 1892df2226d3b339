"""Text from the Hub's data sets, from a cache in the layout of the Hub's library."""

import json
import os
import subprocess
import sys

import pytest

from spanbert_fast.data.hub_dataset import HubDataset
from spanbert_fast.errors import UsageError
from test_hub import COMMIT


def test_addresses():
    for address, wanted in (
        ("hf://o/n", ("o/n", None, "train")),
        ("hf://o/n/c.1:test", ("o/n", "c.1", "test")),
        ("hf://n:train[:1%]", ("n", None, "train[:1%]")),
    ):
        assert tuple(HubDataset.of(address)) == wanted
    assert str(HubDataset.of("hf://o/n/c")) == "hf://o/n/c:train"
    for wrong in ("hf://", "hf://a/b/c/d", "hf://a/b:"):
        with pytest.raises(UsageError, match=r"must be hf://OWNER/NAME"):
            HubDataset.of(wrong)


READ = """
import sys
from spanbert_fast.data.corpus import load_documents
print(len(load_documents([sys.argv[1]])["text"]), load_documents([sys.argv[1]])["text"][0])
"""


def test_a_data_set_of_the_cache(tmp_path):
    snapshot = tmp_path / "datasets--somebody--texts" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    refs = tmp_path / "datasets--somebody--texts" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    for split, texts in (("train", ["one", "two"]), ("test", ["three"])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (snapshot / f"{split}.jsonl").write_text(rows)

    def read(address):
        return subprocess.run(
            [sys.executable, "-c", READ, address],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "HF_HUB_CACHE": str(tmp_path),
                "HF_DATASETS_CACHE": str(tmp_path / "prepared"),
                "HF_HUB_OFFLINE": "1",
            },
        )

    assert read("hf://somebody/texts").stdout.split() == ["2", "one"]
    assert read("hf://somebody/texts/default:train[50%:]").stdout.split() == ["1", "two"]
    assert read("hf://somebody/texts:test").stdout.split() == ["1", "three"]
    missing = read("hf://somebody/else").stderr.splitlines()[-1]
    assert "UsageError: --data hf://somebody/else:train: cannot be read" in missing
