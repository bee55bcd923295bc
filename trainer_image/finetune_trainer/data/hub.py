"""The Hugging Face hub: which of its errors only the user can fix, and its data sets."""

from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from finetune_api.dataset import HubDataset
from finetune_trainer.data.formats import MissingColumn
from finetune_trainer.errors import DataError

_PATH = "spec.dataset.hub.path"
_SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def is_transient(error: BaseException) -> bool:
    """Whether `error` says that the hub could not be reached just now, so trying again may help."""
    if constants.HF_HUB_OFFLINE:
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError | TimeoutError | LocalEntryNotFoundError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first line of an error's text, without a full stop and cut to `limit` characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:limit]


def hub_splits(hub: HubDataset, columns: list[str]) -> dict[str, dict[str, list[Any]]]:
    """The columns of each split of the data set `hub`, by our names of the splits.

    Class numbers become names; -1, the hub's mark for a hidden label, becomes None. Raises
    DataError if the data set, its training split or a column does not exist. An unreachable hub raises
    the hub's own ConnectionError.
    """
    found = _load(hub)
    splits = {}
    for ours, names in _SPLIT_NAMES.items():
        theirs = next((name for name in names if name in found), None)
        if theirs is not None:
            splits[ours] = _columns(found[theirs], columns)
    if "train" not in splits:
        raise DataError(_PATH, f"must have a split named train (got {', '.join(found)})")
    return splits


def _load(hub: HubDataset) -> Any:
    import datasets  # slow to import, and only studies of the hub need it

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(hub.path, hub.name, revision=hub.revision)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        if is_transient(error):
            raise
        offline = " while HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
        raise DataError(
            _PATH,
            f"must be a data set that can be loaded{offline} (got {hub.path}: {first_line(error)})",
        ) from error


def _columns(split: Any, columns: list[str]) -> dict[str, list[Any]]:
    missing = [name for name in columns if name not in split.column_names]
    if missing:
        raise MissingColumn(missing[0], split.column_names)
    return {name: _named(split.features[name], split[name][:]) for name in columns}


def _named(feature: Any, values: list[Any]) -> list[Any]:
    inner = getattr(feature, "feature", feature)
    if not hasattr(inner, "int2str"):
        return values

    def name(value: int | None) -> str | None:
        return None if value is None or value < 0 else str(inner.int2str(value))

    if inner is feature:
        return [name(value) for value in values]
    return [None if row is None else [name(value) for value in row] for row in values]
