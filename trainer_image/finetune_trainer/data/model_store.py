"""Pretrained models in object stores: fetched once for all processes of a machine."""

import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path

from huggingface_hub import constants

from finetune_trainer.data.load import raise_if_away
from finetune_trainer.storage.locations import files_below, open_filesystem, receive


@cache
def fetched(location: str) -> Path:
    """A local folder, beside the models of the hub, with the files at a URI as they are there now.

    Raises FileNotFoundError or ValueError if there can be no files there, StorageUnavailable if the store cannot be
    reached now.
    """
    try:
        return _fetched(location)
    except OSError as error:
        raise_if_away(error, location, Path())
        raise


def _fetched(location: str) -> Path:
    filesystem, path = open_filesystem(location)
    root = path.rstrip("/")
    files = files_below(filesystem, root)
    versions = sorted((file.path, file.size, file.mtime_ns) for file in files)
    state = hashlib.sha256(json.dumps([location, versions]).encode()).hexdigest()[:16]
    folder = Path(constants.HF_HOME) / "finetune" / state
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        whole = Path(partial) / "model"
        whole.mkdir()
        receive(filesystem, root, files, whole)
        try:
            whole.rename(folder)
        except OSError:
            if not folder.is_dir():  # unless another process was faster
                raise
    return folder
