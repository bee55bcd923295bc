"""Object stores by their URIs: what `pyarrow` reads from a URI, and the credentials that it cannot find there."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

from pyarrow import fs

_OPTIONS = {
    "s3": "allow_delayed_open=true",  # one request a small file instead of three
    "gs": "retry_limit_seconds=10",  # or a server that is gone is told after 15 minutes
    "gcs": "retry_limit_seconds=10",
}

CHUNK_BYTES = 1 << 22
_COPIES = 8
"""Files that are fetched at the same time."""

GOOGLE_KEY = "GOOGLE_APPLICATION_CREDENTIALS_JSON"
"""The key of a service account itself, for a Secret cannot hold the path of one."""

_GOOGLE_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
AZURE_KEY, AZURE_TOKEN = "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"  # as Azure's CLI has them


def open_filesystem(location: str) -> tuple[Any, str]:
    """The filesystem at a URI, and the path in it. Raises ValueError for an unknown scheme.

    Credentials are those in the URI, those that pyarrow finds (the usual variables of each cloud, the identity
    of the pod), and those in the variables above.
    """
    scheme = location.partition("://")[0]
    if scheme in ("gs", "gcs") and _GOOGLE_FILE not in os.environ:
        key = os.environ.get(GOOGLE_KEY)
        if key:
            os.environ[_GOOGLE_FILE] = str(_key_file(key))
    filesystem, path = fs.FileSystem.from_uri(_with_options(scheme, location))
    if isinstance(filesystem, fs.S3FileSystem):
        # By a URI it is made to try for minutes while a server hangs, and only once while it throttles;
        # a copy has pyarrow's usual three attempts.
        filesystem = copy(filesystem)
    elif scheme in ("abfs", "abfss") and AZURE_KEY in os.environ:
        remake, (facts,) = filesystem.__reduce__()
        if not (facts["sas_token"] or facts["client_id"]):
            filesystem = remake({**facts, "account_key": os.environ[AZURE_KEY]})
    return filesystem, path


def _with_options(scheme: str, location: str) -> str:
    option = _OPTIONS.get(scheme, "")
    if scheme in ("abfs", "abfss") and AZURE_KEY not in os.environ:
        option = os.environ.get(AZURE_TOKEN, "").lstrip("?")
    return f"{location}{'&' if '?' in location else '?'}{option}" if option else location


def files_below(filesystem: Any, root: str) -> list[fs.FileInfo]:
    """The files at a path and below it. Raises FileNotFoundError if there are none."""
    selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
    files = [one for one in filesystem.get_file_info(selector) if one.type == fs.FileType.File]
    if not files:  # Google's client would say so without the number of the error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), root)
    return files


def receive(filesystem: Any, root: str, files: Iterable[fs.FileInfo], folder: Path) -> None:
    """Copy `files`, which lie below `root`, to a local folder."""

    def copy_one(path: str) -> None:
        target = folder / path.removeprefix(f"{root}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        with filesystem.open_input_file(path) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK_BYTES)

    with ThreadPoolExecutor(_COPIES) as pool:
        # Not pyarrow's copy_files: it takes only folders that are objects for folders.
        list(pool.map(copy_one, [file.path for file in files]))


@cache
def _key_file(key: str) -> Path:
    """A file with the key that only this user can read."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        file.write(key)
    return Path(file.name)


def beside(location: str, own: str | None) -> str:
    """`location` with the credentials and options of `own`, if it has none itself and is in the same bucket."""
    if own is None or "://" not in location or "@" in location or "?" in location:
        return location
    own, mark, options = own.partition("?")
    scheme, _, place = own.partition("://")
    bucket = place.partition("/")[0]
    there, _, path = location.partition("://")[2].partition("/")
    if location.partition("://")[0] != scheme or bucket.rpartition("@")[2] != there:
        return location
    return f"{scheme}://{bucket}/{path}{mark}{options}"


def shown(location: str) -> str:
    """A location as people may see it: without a password, whose it is, and options."""
    if "://" not in location:
        return location
    return re.sub(r"://[^/@]*:[^/@]*@", "://", location).partition("?")[0]
