"""Studies on this machine at a glance: what a small file beside the records says, read without the models of a study."""

import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from finetune_trainer.storage.layout import HOLDER, PROGRESS, RESULT, STUDY, TERM

State: TypeAlias = Literal["Starting", "Running", "Refitting", "Complete", "Failed", "Stopped"]
"""Stopped: it has not ended, and nobody works on it; running it again goes on."""

_STATES: Mapping[str, State] = {
    "Preparing": "Starting",
    "Searching": "Running",
    "Refitting": "Refitting",
    "Drained": "Stopped",
    "Finished": "Complete",
    "Failed": "Failed",
}
_HELD = re.compile(r"process ([1-9][0-9]{0,8}) on (.+)")

DEPTH = 3
"""How far below a folder studies are looked for."""


@dataclass(frozen=True)
class Glance:
    """What can be said of a study in a line."""

    name: str
    folder: str
    state: State
    reason: str = ""
    message: str = ""
    task: str = ""
    metric: str = ""
    """Of the objective."""

    trials: str = ""
    """Ended trials, and those planned: `7/24`."""

    best: float | None = None
    test: float | None = None
    """The objective of the final model on the test rows."""

    changed: float = 0.0
    """When it was last written, in seconds since the epoch."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in success or failure."""
        return self.state in ("Complete", "Failed")

    @property
    def is_running(self) -> bool:
        """Whether somebody works on it."""
        return self.state in ("Starting", "Running", "Refitting")

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


def write_progress(folder: Path, about: Mapping[str, str], progress: Mapping[str, Any]) -> None:
    """Write what `glance` reads: `name`, `task` and `metric` of the study, and its progress document.

    Readers see all of it or nothing. Raises OSError: also where nothing has begun, as in the empty folder that a disk
    leaves behind.
    """
    if not any((folder / name).is_file() for name in (TERM, STUDY)):
        raise FileNotFoundError(f"no study has begun in {folder}")
    target = folder / PROGRESS
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps({**about, "progress": progress}))
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)  # its space may be what is missing
        raise


def is_study(folder: Path) -> bool:
    """Whether a study has begun in a folder."""
    return (folder / STUDY).is_file()


def studies_below(folders: Sequence[Path]) -> list[Path]:
    """The folders of studies among `folders` and below them, each once; those of each folder by their paths.

    Raises NotADirectoryError for what is no folder.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise NotADirectoryError(
                f"{folder} must be a folder: of a study, or with studies in it"
            )
        for study in _below(folder, DEPTH):
            found.setdefault(study.resolve(), study)
    return list(found.values())


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if is_study(folder):
        yield folder
    elif depth:
        with os.scandir(folder) as entries:
            inside = sorted(
                entry.path
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            )
        for path in inside:
            try:
                yield from _below(Path(path), depth - 1)
            except (PermissionError, FileNotFoundError):
                continue  # one may not look there, or it has been deleted since


def glances(folders: Sequence[Path]) -> list[Glance]:
    """The studies in these folders and below, without those that vanish meanwhile. Raises NotADirectoryError."""
    found = []
    for folder in studies_below(folders):
        with suppress(FileNotFoundError):  # deleted since it was found
            found.append(glance(folder))
    return found


def glance(folder: Path) -> Glance:
    """The study in a folder. Of one that cannot be read, only that is said. Raises FileNotFoundError if none has begun there."""
    changed = (folder / STUDY).stat().st_mtime
    try:
        return _by_progress(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Of an earlier or a later version, it has just begun, or the machine lost power before the file was on its disk.
        pass
    try:
        return _by_result(folder, changed)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        why = f"it cannot be read: {error}"
        state: State = "Running" if is_held(folder) else "Stopped"
        name = folder.absolute().name
        return Glance(name, str(folder), state, message=why, changed=changed)


def _by_progress(folder: Path) -> Glance:
    told = json.loads((folder / PROGRESS).read_bytes())
    changed = (folder / PROGRESS).stat().st_mtime
    progress = told["progress"]
    findings = progress.get("findings", {})
    state, reason = _STATES[progress["phase"]], progress["reason"]
    metric = told["metric"]
    if state in ("Starting", "Running", "Refitting") and not is_held(folder):
        state, reason = "Stopped", "" if reason == "Running" else reason
    return Glance(
        name=told["name"],
        folder=str(folder),
        state=state,
        reason=reason,
        message=progress.get("message", ""),
        task=told["task"],
        metric=metric,
        trials=_trials(findings),
        best=(findings.get("best") or {}).get("value"),
        test=((findings.get("final") or {}).get("testMetrics") or {}).get(metric),
        changed=changed,
    )


def _by_result(folder: Path, changed: float) -> Glance:
    """By the study's status, if it has been written; else nothing but that it has begun is known."""
    begun: State = "Running" if is_held(folder) else "Stopped"
    unknown = Glance(folder.absolute().name, str(folder), begun, changed=changed)
    try:
        text = (folder / RESULT).read_bytes()
        changed = (folder / RESULT).stat().st_mtime
    except FileNotFoundError:
        return unknown
    import yaml

    try:
        study = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return unknown
    if not isinstance(study, dict) or "spec" not in study:
        return unknown
    status, spec = study.get("status") or {}, study["spec"]
    metric = spec["objective"]["metric"]
    ended: Mapping[str, State] = {"Complete": "Complete", "Failed": "Failed"}
    true = [each["reason"] for each in status.get("conditions") or [] if each["status"] == "True"]
    return Glance(
        name=study["metadata"]["name"],
        folder=str(folder),
        state=ended.get(str(status.get("state")), begun),
        reason=next(iter(true), ""),
        message=status.get("message", ""),
        task=spec["task"],
        metric=metric,
        trials=_trials(status),
        best=(status.get("best") or {}).get("value"),
        test=((status.get("final") or {}).get("testMetrics") or {}).get(metric),
        changed=changed,
    )


def _trials(findings: Mapping[str, Any]) -> str:
    return str((findings.get("trials") or {}).get("summary", ""))


def is_held(folder: Path) -> bool:
    """Whether a process works on the study. Of another machine's it is believed while its name stands there."""
    try:
        found = _HELD.fullmatch((folder / HOLDER).read_text(errors="replace").strip())
    except OSError:  # nobody's, or nobody may look
        return False
    if found is None:
        return False
    if found[2] != socket.gethostname():
        return True
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


def age(changed: float) -> str:
    """How long ago, in the unit that matters."""
    seconds = max(0.0, time.time() - changed)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
