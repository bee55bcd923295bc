"""The studies on this machine."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from finetune_api.texts import plain
from finetune_reports.document import NoReport, Report
from finetune_trainer.errors import StudyError
from finetune_trainer.storage.glance import Glance, glance, glances, is_held, studies_below
from finetune_trainer.storage.layout import HOLDER, PROGRESS, RECORDS, RESULT, RESULTS
from finetune_ui.source import Asked, Line, NoStudy, SourceError, Surroundings


class Folders:
    """The studies in and below some folders. New ones are seen when they begin."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [folder.absolute() for folder in folders]
        self.title = ", ".join(map(str, folders))

    def _found(self) -> dict[str, Path]:
        there = [folder for folder in self._folders if folder.is_dir()]
        return {_id(folder): folder for folder in studies_below(there)}

    def lines(self) -> Sequence[Line]:
        """All studies, the one that changed last first."""
        seen = glances([folder for folder in self._folders if folder.is_dir()])
        seen.sort(key=lambda one: one.changed, reverse=True)
        return [_line(_id(Path(one.folder)), one) for one in seen]

    def version(self) -> str:
        """Which studies there are, and when each was last heard of."""
        return "\n".join(f"{id} {_seen(folder)}" for id, folder in self._found().items())

    def study(self, id: str) -> "FolderStudy":
        """The study of that id. Raises NoStudy."""
        found = self._found().get(id)
        if found is None:
            raise NoStudy(f"There is no such study below {self.title}.")
        return FolderStudy(id, found)


class FolderStudy:
    """The study in a folder."""

    def __init__(self, id: str, folder: Path) -> None:
        self._id, self._folder = id, folder

    def version(self) -> str:
        """Sizes and times of the files that matter."""
        files = [*_files(self._folder / RECORDS), *_files(self._folder / RESULTS)]
        return f"{_seen(self._folder)} {' '.join(sorted(files))}"

    def line(self) -> Line:
        """As its progress says it."""
        try:
            return _line(self._id, glance(self._folder))
        except FileNotFoundError as error:
            raise NoStudy(f"The study has just been deleted: {error}") from error

    def around(self) -> Surroundings:
        """Nothing is around a folder."""
        return Surroundings()

    def report(self, full: bool = False) -> Report:
        """As its records are now."""
        from finetune_trainer.commands.report import document_in  # imports the search

        folder = self._folder
        try:
            return document_in(folder)
        except (StudyError, NoReport) as error:
            if not is_held(folder):
                raise SourceError(f"{error}") from error
            # One of a Python function: only that function's program knows its search.
            seen = glance(folder)
            best = "" if seen.best is None else f", best {seen.metric} {seen.best:.4g}"
            so_far = f"So far: {seen.trials or 'no'} trials{best}."
            raise SourceError(
                f"The report of a search over a Python function appears when the search ends. {so_far}"
            ) from error
        except (OSError, ValueError) as error:
            raise SourceError(f"The records in {folder} cannot be read: {error}") from error

    def log(self) -> str:
        """`finetune run` logs to its terminal."""
        raise NoStudy("A study on this machine logs to the terminal that it runs in.")

    def act(self, action: str, values: Mapping[str, str], sure: bool) -> Asked:
        """Nothing can be done to it but in its terminal."""
        raise SourceError("A study on this machine is steered in the terminal that it runs in.")


def _id(folder: Path) -> str:
    return sha256(os.fsencode(folder)).hexdigest()[:16]


def _place(folder: Path) -> str:
    """Its path, from here if it is below."""
    here = Path.cwd()
    return plain(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _line(id: str, one: Glance) -> Line:
    return Line(
        id=id,
        name=plain(one.name),
        place=_place(Path(one.folder)),
        state=one.state,
        reason=one.reason,
        metric=one.metric,
        trials=one.trials,
        best=one.best,
        test=one.test,
        changed=f"{datetime.fromtimestamp(one.changed):%Y-%m-%d %H:%M:%S}",
        is_failed=one.state == "Failed",
    )


def _seen(folder: Path) -> str:
    return " ".join(
        [str(is_held(folder)), *(_stat(folder / name) for name in (PROGRESS, HOLDER, RESULT))]
    )


def _stat(path: Path) -> str:
    try:
        found = path.stat()
    except FileNotFoundError:
        return "-"
    return f"{found.st_size}:{found.st_mtime_ns}"


def _files(folder: Path) -> list[str]:
    """Names, sizes and times of the files in and below a folder; what vanishes meanwhile is left out."""
    found: list[str] = []
    for at, _, names in os.walk(folder):
        found += [f"{name}:{_stat(Path(at) / name)}" for name in names]
    return found
