"""Text from data sets of the Hub, streamed row by row: `hf://OWNER/NAME[/CONFIG][:SPLIT]`."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from datasets import load_dataset
from huggingface_hub import constants, snapshot_download

from spanbert_fast.errors import DataError, UsageError

SCHEME = "hf://"
_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))?(:(?P<split>[^/]+))?")


class HubDataset(NamedTuple):
    """A data set of the Hub.

    Attributes:
        name: OWNER/NAME.
        config: None if the data set has only one.
        split: such as "train" or "train[:1%]".
    """

    name: str
    config: str | None
    split: str

    @classmethod
    def of(cls, address: str) -> "HubDataset":
        """Parse an address.

        Raises:
            UsageError: the address does not have this form.
        """
        found = _NAME.fullmatch(address.removeprefix(SCHEME))
        if found is None:
            raise UsageError(
                f"--data {address}: must be hf://OWNER/NAME, with /CONFIG and :SPLIT where needed"
            )
        return cls(found["name"], found["config"], found["split"] or "train")

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"{SCHEME}{self.name}{config}:{self.split}"

    def texts(self) -> Iterator[str]:
        """Stream the column `text`: rows are downloaded as they are read. A part of a split cannot
        be streamed, so its whole split is downloaded first.

        Offline (HF_HUB_OFFLINE) it reads the copy in the Hub's cache.

        Raises:
            UsageError: there is no such data set, config or split.
            DataError: it has no column `text` of strings.
        """
        try:
            place = self.name
            if constants.is_offline_mode():
                place = snapshot_download(self.name, repo_type="dataset")
            streaming = "[" not in self.split
            rows = load_dataset(place, self.config, split=self.split, streaming=streaming)
            rows = iter(rows)
            first = next(rows, None)
        # the libraries, the network and each file format raise their own errors
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UsageError(f"--data {self}: cannot be read: {reason}") from error
        while first is not None:
            text = first.get("text")
            if not isinstance(text, str):
                raise DataError(
                    f"{self}: needs a column `text` of strings, has {', '.join(first)[:200]}"
                )
            yield text
            first = next(rows, None)
