"""`finetune.json`, which lies beside a model: what it was made for, so that it can be used without its study."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.dataset import Dataset
from finetune_api.manifest import problems
from finetune_api.schema import Model
from finetune_api.study import StudySpec
from finetune_api.tasks import TASKS, Task
from finetune_trainer.errors import ModelError
from finetune_trainer.search.recorded import recorded_spec
from finetune_trainer.storage.layout import FINAL_MODEL, STUDY
from finetune_trainer.tasks import task_of

ABOUT = "finetune.json"

_OF_ROWS = (
    *("textColumns", "joinTextColumns", "tokensColumn", "labelColumn", "labelColumns"),
    *("labelSeparator", "tagsColumn", "spansColumn", "labelNames", "cleaning"),
)
"""The fields of a study's `dataset` that say how any rows are read, not which."""


class ModelAbout(Model):
    """What a model was made for."""

    task: Task
    metrics: list[str]
    """What its study measured, the objective's metric first."""

    dataset: dict[str, Any]
    """How rows are read: fields of the study's `dataset`."""

    @classmethod
    def of(cls, spec: StudySpec) -> "ModelAbout":
        """What the final model of a study is made for."""
        given = spec.dataset.to_short_json()
        rows = {name: given[name] for name in _OF_ROWS if name in given}
        named = dict.fromkeys(name for name in spec.objective.named if "@" not in name)
        return cls(task=spec.task, metrics=list(named), dataset=rows)

    @property
    def file(self) -> tuple[str, bytes]:
        """The name of the file, and its content."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"
        return ABOUT, text.encode()

    @property
    def names_columns(self) -> bool:
        """Whether it says which columns the model reads."""
        return "textColumns" in self.dataset or "tokensColumn" in self.dataset

    def rows_of(
        self,
        file: str = "rows",
        text_columns: Sequence[str] | None = None,
        label_column: str | None = None,
    ) -> Dataset:
        """The rows of a file as the study would read them, from other columns if these are given.

        Raises ModelError if they do not fit the model.
        """
        told = {**task_of(self.task).usual_labels, "textColumns": ["text"]}
        if self.names_columns:
            told = dict(self.dataset)
        if text_columns is not None:
            told = {**self._of_texts(told), "textColumns": list(text_columns)}
        if label_column is not None:
            used = next((name for name in _LABELS if name in told), "labelColumn")
            told = {**told, used: label_column}
            told.pop("labelColumns", None)
        try:
            return Dataset.model_validate({**told, "files": {"train": file}})
        except ValidationError as error:
            first = next(iter(problems(error)))
            raise ModelError(f"spec.dataset.{first.field}", first.message) from error

    def _of_texts(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """How rows are read from texts by a model that was trained on lists of words; others stay as they are."""
        if "tokensColumn" not in rows:
            return dict(rows)
        lowercase = rows.get("cleaning", {}).get("lowercase", False)
        return {**task_of(self.task).usual_labels, "cleaning": {"lowercase": lowercase}}


_LABELS = ("labelColumn", "tagsColumn", "spansColumn")


def model_folder(path: str | Path) -> Path:
    """The folder of the model at `path`, which may be that of its study. Raises ModelError if there is none."""
    folder = Path(path)
    for each in (folder / FINAL_MODEL, folder):
        if any((each / name).is_file() for name in ("config.json", "ensemble.json")):
            return each
    raise ModelError(
        "MODEL",
        f"must be the folder of a model, or of a study that has ended with one (got {path})",
    )


def about_of(folder: Path) -> ModelAbout:
    """What the model in a folder was made for.

    Folders of versions without `finetune.json` are known by the records of the study that they are in; others by the
    model's configuration alone. Raises ModelError if that says nothing either.
    """
    try:
        if (folder / ABOUT).is_file():
            return ModelAbout.model_validate_json((folder / ABOUT).read_bytes())
    except ValidationError as error:
        first = next(iter(problems(error)))
        raise ModelError(str(folder / ABOUT), f"{first.field} {first.message}") from error
    if (folder.parent / STUDY).is_file():
        return ModelAbout.of(recorded_spec(folder.parent))
    task = _task_in(folder)
    return ModelAbout(task=task, metrics=[TASKS[task].usual_metric], dataset={})


def _task_in(folder: Path) -> Task:
    """The task of the model in a folder, by its configuration."""
    ensemble = folder / "ensemble.json"
    if ensemble.is_file():
        task: Task = json.loads(ensemble.read_bytes())["task"]
        return task
    config = json.loads((folder / "config.json").read_bytes())
    kinds: Sequence[str] = config.get("architectures") or ()
    for name in TASKS:
        task_object = task_of(name)
        kind = task_object.auto_class.removeprefix("AutoModel")
        if task_object.problem_type == config.get("problem_type") and any(
            each.endswith(kind) for each in kinds
        ):
            return name
    raise ModelError(
        "MODEL",
        f"must be a model that this project has trained (got {folder}, whose config.json has architectures "
        f"{list(kinds)} and problem_type {config.get('problem_type')})",
    )
