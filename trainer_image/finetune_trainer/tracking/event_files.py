"""Writes event files for TensorBoard, with its own writer and messages, to the study's storage.

Object stores cannot append, and TensorBoard does not notice that a file was replaced. So every update goes into
a new file, written once, whose name says what it has. A run is a sequence of entries (0 its parameters, then
its evaluations, then its end); a file has those from one number to another.
"""

import io
from collections.abc import Iterator

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.summary.writer.record_writer import RecordWriter

from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import TENSORBOARD
from finetune_trainer.tracking.runs import Ending, TrackedRun, TrackingError

_NAME = "events.out.tfevents."
_VERSION = "brain.Event:2"
"""The content of the first message of every event file."""


class EventFiles:
    """One folder per run, `tensorboard/<label>/`: what `tensorboard --logdir` reads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._written: dict[str, int] | None = None
        """Label → entries in its files; None until the storage has been asked."""

    def write(self, run: TrackedRun) -> None:
        """Write the entries that are in no file yet to a new one. Raises TrackingError."""
        try:
            self._write(run)
        except OSError as error:
            self._written = None  # it is unknown whether the file is there
            raise TrackingError(f"{self._storage.uri(TENSORBOARD)}: {error}") from error

    def close(self) -> None:
        """Nothing to do: every file is complete."""

    def _write(self, run: TrackedRun) -> None:
        if self._written is None:
            self._written = _entries(self._storage.files(TENSORBOARD))
        first = self._written.get(run.label, 0)
        entries = list(_events(run))[first:]
        if not entries:
            return
        last = first + len(entries) - 1
        path = f"{TENSORBOARD}/{run.label}/{_NAME}{first:06d}-{last:06d}"
        opening = Event(wall_time=entries[0].wall_time, file_version=_VERSION)
        self._storage.write(path, _encoded([opening, *entries]))
        self._written[run.label] = last + 1


def _entries(paths: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for path in paths:
        label, _, name = path.removeprefix(f"{TENSORBOARD}/").partition("/")
        last = name.removeprefix(_NAME).partition("-")[2]
        if name.startswith(_NAME) and last.isdigit():
            found[label] = max(found.get(label, 0), int(last) + 1)
    return found


def _events(run: TrackedRun) -> Iterator[Event]:
    """The entries of the run, one event each."""
    yield Event(wall_time=run.started, step=0, summary=_start(run))
    for point in run.points:
        yield Event(wall_time=point.time, step=point.step, summary=_scalars(point.values))
    if run.ending is not None:
        summary = _scalars(run.ending.results)
        summary.MergeFrom(_end(run.ending))
        yield Event(wall_time=run.ending.time, step=len(run.points), summary=summary)


def _scalars(values: dict[str, float]) -> Summary:
    return Summary(
        value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    )


def _start(run: TrackedRun) -> Summary:
    info = SessionStartInfo(group_name=run.key, start_time_secs=run.started)
    for name, value in run.params.items():
        if isinstance(value, bool):  # before numbers: True and False are numbers too
            info.hparams[name].bool_value = value
        elif isinstance(value, str):
            info.hparams[name].string_value = value
        else:
            info.hparams[name].number_value = value
    return _hparams(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def _end(ending: Ending) -> Summary:
    status = STATUS_FAILURE if ending.outcome == "Failed" else STATUS_SUCCESS
    info = SessionEndInfo(status=status, end_time_secs=ending.time)
    return _hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def _hparams(tag: str, data: HParamsPluginData) -> Summary:
    about = metadata.create_summary_metadata(data)
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])


def _encoded(events: list[Event]) -> bytes:
    file = io.BytesIO()
    writer = RecordWriter(file)
    for event in events:
        writer.write(event.SerializeToString())
    return file.getvalue()
