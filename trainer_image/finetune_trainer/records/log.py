"""The record log: an append-only list of events in storage that cannot append.

Every append is one segment `records/<term>/<first>-<last>.jsonl`, written whole. Eight segments of one
size are merged into one of the next, so that tens of thousands of appends stay a few dozen files. A
segment names its events and their checksum in its first line: a torn one is skipped, and what follows a
gap is not read.

A term is one start of a driver. Its first segment holds all that it read of the terms before it, so that
one object, written whole, both freezes the past and makes the term complete in itself: readers read the
latest term that has begun and nothing else. Whatever an older driver writes later is never read.
"""

import json
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from finetune_trainer.records.events import Event, TermStarted, from_json, to_json
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import RECORDS

_FANOUT = 8
_READS = 10


@dataclass(frozen=True)
class _Segment:
    term: int
    first: int
    last: int

    @property
    def path(self) -> str:
        return f"{RECORDS}/{self.term:06d}/{self.first:09d}-{self.last:09d}.jsonl"

    @classmethod
    def parse(cls, path: str) -> "_Segment | None":
        try:
            _, term, name = path.split("/")
            first, last = name.removesuffix(".jsonl").split("-")
            segment = cls(int(term), int(first), int(last))
        except ValueError:
            return None
        return segment if segment.path == path else None  # a temporary file, or somebody's note

    def encode(self, lines: list[str]) -> bytes:
        """The segment with its events, as bytes."""
        body = "".join(f"{line}\n" for line in lines).encode()
        return json.dumps(self._header(body)).encode() + b"\n" + body

    def decode(self, data: bytes) -> list[str] | None:
        """The events that `encode` was given; None if the bytes are not whole."""
        head, _, body = data.partition(b"\n")
        try:
            header = json.loads(head)
        except (ValueError, RecursionError):
            return None
        return body.decode().splitlines() if header == self._header(body) else None

    def _header(self, body: bytes) -> dict[str, int]:
        crc32 = zlib.crc32(body)
        return {"term": self.term, "first": self.first, "last": self.last, "crc32": crc32}


@dataclass(frozen=True)
class History:
    """What a reader finds."""

    events: list[Event]
    last_term: int
    """The latest term that has begun; 0 if none."""

    torn: list[str]
    """Segments that could not be used: torn, or cut off by a gap before them."""

    lines: list[str] = field(repr=False)
    """The events as stored."""


def last_term(storage: Storage) -> int:
    """The highest term that has written records; 0 if none has."""
    segments = (_Segment.parse(path) for path in storage.files(RECORDS))
    return max((segment.term for segment in segments if segment is not None), default=0)


def read_history(storage: Storage) -> History:
    """All events that count, in order.

    Raises ValueError for an event that this version does not know, FileNotFoundError if segments keep
    vanishing.
    """
    for _ in range(_READS - 1):
        try:
            return _read_history(storage)
        except FileNotFoundError:
            continue  # a driver that still runs has merged what was just listed
    return _read_history(storage)


@dataclass
class Follower:
    """Reads the log of one term piece by piece, while its driver writes."""

    storage: Storage
    term: int
    _read: int = 0
    """Events read so far."""

    def more(self) -> list[Event]:
        """The events since the last call. Raises as `read_history`."""
        for _ in range(_READS - 1):
            try:
                return self._more()
            except FileNotFoundError:
                continue  # merged since it was listed
        return self._more()

    def _more(self) -> list[Event]:
        found = map(_Segment.parse, self.storage.files(f"{RECORDS}/{self.term:06d}"))
        new = [segment for segment in found if segment is not None and segment.last >= self._read]
        lines = _read_term(self.storage, new, [], self._read)
        events = _events(lines, self.term)
        self._read += len(events)
        return events


def _read_history(storage: Storage) -> History:
    terms: dict[int, list[_Segment]] = defaultdict(list)
    for path in storage.files(RECORDS):
        segment = _Segment.parse(path)
        if segment is not None:
            terms[segment.term].append(segment)
    torn: list[str] = []
    for term in sorted(terms, reverse=True):
        lines = _read_term(storage, terms[term], torn)
        if lines:
            return History(_events(lines, term), term, torn, lines)
    return History([], 0, torn, [])


def _read_term(
    storage: Storage, segments: list[_Segment], torn: list[str], begin: int = 0
) -> list[str]:
    """The events of the term from number `begin` on."""
    lines: list[str] = []
    for segment in sorted(segments, key=lambda s: (s.first, -s.last)):
        end = begin + len(lines)
        if segment.last < end:
            continue  # already read as part of a merged segment
        found = None
        if segment.first <= end:  # else a gap: it was decided on events that are lost
            found = segment.decode(storage.read(segment.path))
        if found is None:
            torn.append(segment.path)
        else:
            lines.extend(found[end - segment.first :])
    return lines


def _events(lines: list[str], term: int) -> list[Event]:
    try:
        values = json.loads(f"[{','.join(lines)}]")
    except RecursionError as error:
        raise ValueError(f"the events of term {term} in {RECORDS} must be JSON objects") from error
    if len(values) != len(lines):
        raise ValueError(f"each event of term {term} in {RECORDS} must be one line")
    events = []
    for number, value in enumerate(values):
        try:
            events.append(from_json(value))
        except ValueError as error:  # written by another version: to go on would lose it
            raise ValueError(f"event {number} of term {term} in {RECORDS} {error}") from error
    return events


@dataclass
class RecordLog:
    """The log as one driver writes it, under its own term."""

    storage: Storage
    term: int
    _written: int = 0
    _levels: list[list[tuple[_Segment, list[str]]]] = field(default_factory=list)
    """Unmerged segments by size class, with their lines."""

    _broken: OSError | None = None

    @classmethod
    def start(cls, storage: Storage, term: int, now: float) -> tuple["RecordLog", History]:
        """Read what there is, freeze it, and begin `term`, which must be above every term that has begun.

        Removes the earlier terms. Raises ValueError if `term` is not above them, and as `read_history`.
        """
        history = read_history(storage)
        if history.last_term >= term:
            raise ValueError(f"term must be above {history.last_term} (got {term})")
        log = cls(storage, term)
        started = TermStarted(now, term=term)
        lines = [*history.lines, _line(started)]
        log._write(lines, _level(len(lines)))
        for path in storage.files(RECORDS):
            segment = _Segment.parse(path)
            if segment is not None and segment.term < term:
                storage.delete(path)
        return log, History([*history.events, started], term, history.torn, [])

    def append(self, events: Iterable[Event]) -> None:
        """Write the events durably, as one segment.

        Raises OSError if storage refuses (with retries: if it was told to stop), then and ever after: nobody
        knows whether the segment is there, so only a new term can go on.
        """
        lines = [_line(event) for event in events]
        if self._broken is not None:
            raise OSError(f"the records of term {self.term} ended: {self._broken}")
        if lines:
            try:
                self._write(lines, level=0)
            except OSError as error:
                self._broken = error
                raise

    def _write(self, lines: list[str], level: int) -> None:
        segment = _Segment(self.term, self._written, self._written + len(lines) - 1)
        self.storage.write(segment.path, segment.encode(lines))
        self._written += len(lines)
        self._file(segment, lines, level)

    def _file(self, segment: _Segment, lines: list[str], level: int) -> None:
        while level >= len(self._levels):
            self._levels.append([])
        self._levels[level].append((segment, lines))
        if len(self._levels[level]) < _FANOUT:
            return
        parts = self._levels[level]  # whatever has a lower level is younger, so these have no gaps
        merged = _Segment(self.term, parts[0][0].first, segment.last)
        merged_lines = [line for _, found in parts for line in found]
        self.storage.write(merged.path, merged.encode(merged_lines))
        self._levels[level] = []
        for old, _ in parts:  # only now: a reader always finds one or the other
            self.storage.delete(old.path)
        self._file(merged, merged_lines, level + 1)


def _level(lines: int) -> int:
    """The size class of a term's first segment, so that it is not soon merged again."""
    level = 0
    while lines >= _FANOUT ** (level + 1):
        level += 1
    return level


def _line(event: Event) -> str:
    return json.dumps(to_json(event), separators=(",", ":"))
