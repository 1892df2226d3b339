"""Checkpoints by the Hub's names, as folders on this machine."""

import logging
import os
import re
from pathlib import Path

from spanbert_fast.errors import UsageError

logger = logging.getLogger("spanbert_fast")

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_TEXT_FILES = ["*.json", "*.txt", "*.model"]
_SAFE_WEIGHTS = ["model*.safetensors", "span_boundary.safetensors"]
_OLD_WEIGHTS = ["pytorch_model*.bin"]


def is_repository(name: str) -> bool:
    """Whether a name can only be the Hub's: it has that form, and no local file has it."""
    return bool(_REPOSITORY.fullmatch(name)) and not Path(name).exists()


def check_name(name: str, option: str) -> None:
    """Raise UsageError where a name is neither a folder nor of the form of the Hub's names."""
    if not Path(name).is_dir() and not is_repository(name):
        raise UsageError(
            f"{option} {name} is not a directory, and not a name of the Hub (NAME or OWNER/NAME)"
        )


def folder_of(name: str | Path, option: str, *, weights: bool = True) -> Path:
    """The folder of a checkpoint, or of a tokenizer: one that is here, or the Hub's, downloaded
    into the cache of huggingface_hub; HF_HUB_OFFLINE and HF_HOME count as everywhere.

    Args:
        option: the name's, for messages.
        weights: without, only configuration and tokenizer are fetched.

    Raises:
        UsageError: there is none; says what was tried.
    """
    if Path(name).is_dir():
        return Path(name)
    check_name(str(name), option)
    # imported here, because the library reads the environment when it is imported
    from huggingface_hub import constants, snapshot_download

    offline = constants.is_offline_mode()
    if not offline:
        logger.info("%s %s: from the Hub, or its copy in %s", option, name, constants.HF_HUB_CACHE)
    patterns = _TEXT_FILES + (_SAFE_WEIGHTS if weights else [])
    try:
        folder = Path(snapshot_download(str(name), allow_patterns=patterns))
        if weights and not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(str(name), allow_patterns=_TEXT_FILES + _OLD_WEIGHTS))
    # the library, its HTTP client and the disk each raise their own errors
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        how = "HF_HUB_OFFLINE is set" if offline else f"the Hub at {constants.ENDPOINT} was asked"
        raise UsageError(
            f"{option} {name}: there is no directory {os.path.abspath(name)}; the cache "
            f"{constants.HF_HUB_CACHE} holds no such model; {how}: {reason[:200]}"
        ) from error
    return folder
