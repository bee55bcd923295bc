"""The record log: an append-only list of events in storage that cannot append.

Every append is one segment `records/<term>/<first>-<last>.jsonl`, written whole. Sixteen segments of one
size are merged into one of the next, so that tens of thousands of appends stay a few dozen files. A
segment names its events and their checksum in its first line: a torn one is skipped, and what follows a
gap is not read.

A term is one start of a driver. Its first event says how far it read the terms before it; whatever an
older driver writes later is never read.
"""

import json
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from finetune_trainer.search.events import Event, TermStarted, from_json, to_json
from finetune_trainer.search.storage import Storage

_FOLDER = "records"
_FANOUT = 16


@dataclass(frozen=True)
class _Segment:
    term: int
    first: int
    last: int

    @property
    def path(self) -> str:
        return f"{_FOLDER}/{self.term:06d}/{self.first:09d}-{self.last:09d}.jsonl"

    @classmethod
    def parse(cls, path: str) -> "_Segment | None":
        try:
            _, term, name = path.split("/")
            first, last = name.removesuffix(".jsonl").split("-")
            return cls(int(term), int(first), int(last))
        except ValueError:
            return None  # not ours: a temporary file, or somebody's note


@dataclass(frozen=True)
class History:
    """What a reader finds: the events that count, how far each term goes, and segments it had to skip."""

    events: list[Event]
    reads: dict[str, int]
    torn: list[str]

    @property
    def last_term(self) -> int:
        """The latest term that has begun; 0 if none."""
        return max((int(term) for term in self.reads), default=0)


_READS = 10


def read_history(storage: Storage) -> History:
    """All events that count, in order. Raises FileNotFoundError if segments keep vanishing."""
    for _ in range(_READS - 1):
        try:
            return _read_history(storage)
        except FileNotFoundError:
            continue  # a driver that still runs has merged what was just listed
    return _read_history(storage)


def _read_history(storage: Storage) -> History:
    torn: list[str] = []
    terms: dict[int, list[_Segment]] = defaultdict(list)
    for path in storage.files(_FOLDER):
        segment = _Segment.parse(path)
        if segment is not None:
            terms[segment.term].append(segment)
    lines = {term: _read_term(storage, segments, torn) for term, segments in terms.items()}
    begun = {
        term: found for term, found in lines.items() if found and isinstance(found[0], TermStarted)
    }
    if not begun:
        return History([], {}, torn)
    latest = max(begun)
    first = begun[latest][0]
    assert isinstance(first, TermStarted)  # filtered above
    reads = {term: count for term, count in first.reads.items() if int(term) in begun}
    reads[str(latest)] = len(begun[latest])
    events = [event for term in sorted(begun) for event in begun[term][: reads.get(str(term), 0)]]
    return History(events, reads, torn)


def _read_term(storage: Storage, segments: list[_Segment], torn: list[str]) -> list[Event]:
    events: list[Event] = []
    for segment in sorted(segments, key=lambda s: (s.first, -s.last)):
        if segment.first > len(events):
            break  # a gap: what comes after it was decided on events that are lost
        if segment.last < len(events):
            continue  # already read as part of a merged segment
        found = _decode(storage.read(segment.path), segment)
        if found is None:
            torn.append(segment.path)
        else:
            events.extend(found[len(events) - segment.first :])
    return events


def _encode(lines: list[str], segment: _Segment) -> bytes:
    body = "".join(f"{line}\n" for line in lines).encode()
    header = {
        "term": segment.term,
        "first": segment.first,
        "last": segment.last,
        "crc32": zlib.crc32(body),
    }
    return json.dumps(header).encode() + b"\n" + body


def _decode(data: bytes, segment: _Segment) -> list[Event] | None:
    head, _, body = data.partition(b"\n")
    try:
        header = json.loads(head)
        if header != {
            "term": segment.term,
            "first": segment.first,
            "last": segment.last,
            "crc32": zlib.crc32(body),
        }:
            return None
        return [from_json(json.loads(line)) for line in body.splitlines()]
    except ValueError:
        return None


@dataclass
class RecordLog:
    """The log as one driver writes it, under its own term."""

    storage: Storage
    term: int
    _written: int = 0
    _levels: list[list[tuple[_Segment, list[str]]]] = field(default_factory=list)
    """Unmerged segments by size class, with their lines."""

    @classmethod
    def start(cls, storage: Storage, term: int, now: float) -> tuple["RecordLog", History]:
        """Read what there is, freeze it, and begin `term`, which must be above every term that has begun.

        Raises ValueError if it is not.
        """
        history = read_history(storage)
        if history.last_term >= term:
            raise ValueError(f"term must be above {history.last_term} (got {term})")
        log = cls(storage, term)
        started = TermStarted(now, term, history.reads)
        log.append([started])
        return log, History([*history.events, started], history.reads, history.torn)

    def append(self, events: Iterable[Event]) -> None:
        """Write the events durably, as one segment. Raises OSError if storage refuses."""
        lines = [json.dumps(to_json(event), separators=(",", ":")) for event in events]
        if lines:
            segment = _Segment(self.term, self._written, self._written + len(lines) - 1)
            self.storage.write(segment.path, _encode(lines, segment))
            self._written += len(lines)
            self._file(segment, lines, level=0)

    def _file(self, segment: _Segment, lines: list[str], level: int) -> None:
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append((segment, lines))
        if len(self._levels[level]) < _FANOUT:
            return
        parts = self._levels[level]
        merged = _Segment(self.term, parts[0][0].first, segment.last)
        merged_lines = [line for _, found in parts for line in found]
        self.storage.write(merged.path, _encode(merged_lines, merged))
        self._levels[level] = []
        for old, _ in parts:  # only now: a reader always finds one or the other
            self.storage.delete(old.path)
        self._file(merged, merged_lines, level + 1)
