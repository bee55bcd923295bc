"""Reads manifests as kubectl does, and reports what is wrong with them as the API server would.

kubectl parses YAML with sigs.k8s.io/yaml (YAML 1.1 words for booleans, Go's numbers, no dates or
base-60 numbers) and sends JSON, where a float without a fraction is an integer. PyYAML differs in all
of these, so it gets kubectl's rules here.
"""

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from finetune_api.classes import FineTuneClass
from finetune_api.hints import (
    EXAMPLE_METRIC,
    dotted,
    hint,
    metrics_of,
    nearest,
    usual_metric,
)
from finetune_api.metrics import METRIC_WORDS, plain
from finetune_api.spaces import when_may_not_name
from finetune_api.study import FineTuneStudy, name_problem

_T = TypeVar("_T")

_INT = re.compile(r"[-+]?(0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_BOOLS = {
    **dict.fromkeys(
        ("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True
    ),
    **dict.fromkeys(
        ("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False
    ),
}
_NULLS = re.compile(r"~|null|Null|NULL|")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


MAX_DEPTH = 64
"""Nesting of objects and lists; the deepest that a study needs is in a pod template."""

MAX_VALUES = 1_000_000
"""More than fits into a request to the API server; with aliases, a few lines could have more."""


class _Loader(yaml.SafeLoader):
    """A safe loader with kubectl's scalars; it refuses duplicate keys, and keys that are not text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # as the base class declares it

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key must be text", key)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise _refusal(f"key {key.value!r} must be given once", key)
            seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return {_json_key(key): value for key, value in mapping.items()}

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _refusal("text must be Unicode", node)
        return text


def _json_key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)


def _refusal(message: str, node: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


def _construct_int(loader: _Loader, node: Any) -> int | float | str:
    written = str(loader.construct_scalar(node))
    if not _INT.fullmatch(written):
        raise _refusal(f"{written} must be a whole number", node)
    text = written.replace("_", "")
    digits = text.lstrip("+-")
    try:
        legacy_octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
        number = int(digits, 8) if legacy_octal else int(digits, 0)
    except ValueError:
        return _float(text, written)  # 08 is not a valid octal number, so it is a float
    number = -number if text.startswith("-") else number
    return number if -(2**63) <= number < 2**64 else _float(text, written)


def _construct_float(loader: _Loader, node: Any) -> int | float | str:
    text = str(loader.construct_scalar(node))
    if not _FLOAT.fullmatch(text):
        raise _refusal(f"{text} must be a finite number", node)
    return _float(text, text)


def _float(text: str, written: str) -> int | float | str:
    # Go keeps the text as written if it is not a 64-bit number (0x, 1e999).
    number = float(text) if _FLOAT.fullmatch(text) else math.inf
    return _integral(number) if math.isfinite(number) else written


def _integral(number: float) -> int | float:
    # Go writes floats below 1e21 without an exponent, so 1e3 reaches the API server as the integer 1000.
    return int(number) if number.is_integer() and abs(number) < 1e21 else number


def _construct_bool(loader: _Loader, node: Any) -> bool:
    word = str(loader.construct_scalar(node))
    if word not in _BOOLS:
        raise _refusal(f"{word} must be true or false", node)
    return _BOOLS[word]


def _refuse(_: _Loader, node: Any) -> None:
    raise _refusal(f"{node.tag} must not be used: JSON has no equivalent", node)


_Loader.add_constructor("tag:yaml.org,2002:bool", _construct_bool)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
for _tag in ("binary", "timestamp", "omap", "pairs", "set"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _refuse)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever kubectl would not read back as the same string."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # as the base class declares it

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _resolver in (_Loader, _Dumper):
    for _tag, _pattern, _first in (
        ("bool", "|".join(_BOOLS), "yYnNtTfFoO"),
        ("int", _INT.pattern, "-+0123456789"),
        ("float", f"{_FLOAT.pattern}|{_SPECIAL.pattern}", "-+.0123456789"),
        ("null", _NULLS.pattern, "~nN"),
        ("merge", "<<", "<"),
    ):
        _resolver.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(f"^({_pattern})$"),
            [*_first, *([""] * (_tag == "null"))],
        )


def load_yaml(text: str) -> Any:
    """The only document of `text`, as JSON values. Raises ManifestError if it is not valid YAML."""
    try:
        loader = _Loader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: "\\U00110000"
        raise ManifestError([_unreadable(error, text)]) from error
    except RecursionError as error:
        raise ManifestError([_too_large()]) from error
    _check_size(value)
    return value


_TEMPLATE = re.compile(r"(?:^|[:-]\s|[,\[{])\s*(\{\{|\{%)")
"""Where a value or a key of YAML would begin."""

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|(?:^|\s)#.*")
"""Quoted text and comments of a line."""


def _unreadable(error: Exception, text: str) -> "Problem":
    """What keeps `text` from being YAML of JSON values, and where."""
    line, why = None, str(error)
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        why = ", ".join(part for part in (error.context, error.problem) if part)
    elif isinstance(error, yaml.reader.ReaderError):
        line = text[: error.position].count("\n") + 1
        why = f"the character U+{error.character:04X} must not be used"
    for number, written in enumerate(text.splitlines()[:line], start=1):
        template = _TEMPLATE.search(_QUOTED.sub("", written))
        if template is not None:
            shown = "{{ … }}" if template[1] == "{{" else "{% … %}"
            told = f"{shown} is a template: render it first, or write it in quotes"
            return Problem("", told, number)
    return Problem("", f"must be one YAML document: {why}", line)


def dump_yaml(value: Any) -> str:
    """`value` as YAML that kubectl reads back unchanged."""
    return str(yaml.dump(value, Dumper=_Dumper, width=100, allow_unicode=True, sort_keys=False))


def flow_yaml(value: Any) -> str:
    """`value` on one line, as it may stand behind a key, so that kubectl reads it back unchanged."""
    text = str(
        yaml.dump(
            [value],
            Dumper=_LineDumper,
            default_flow_style=True,
            width=float("inf"),
            allow_unicode=True,
            sort_keys=False,
        )
    )
    return text.strip()[1:-1]


class _LineDumper(_Dumper):
    """Text with line breaks goes into double quotes, where they are escaped."""


def _represent_text(dumper: _LineDumper, text: str) -> yaml.Node:
    plain = text.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_LineDumper.add_representer(str, _represent_text)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a manifest: where (`spec.searchSpaces[0].epochs`) and what must hold."""

    field: str
    message: str
    line: int | None = None
    """Where in the file, from 1."""

    def __str__(self) -> str:
        if not self.field:
            return self.message if self.line is None else f"line {self.line}: {self.message}"
        where = "" if self.line is None else f" (line {self.line})"
        return f"{self.field}: {self.message}{where}"


class ManifestError(ValueError):
    """A manifest that is not a valid study."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def parse_study(document: Any) -> FineTuneStudy:
    """The study in `document` (JSON values). Raises ManifestError with every problem found."""
    if not isinstance(document, dict):
        raise ManifestError(
            [Problem("", "must be a FineTuneStudy (got something that is not a mapping)")]
        )
    _check_size(document)
    try:
        return FineTuneStudy.model_validate(_without_nulls(document), by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(problems(error, document)) from error


def parse_class(document: Any) -> FineTuneClass:
    """The class in `document` (JSON values). Raises ManifestError with every problem found."""
    if not isinstance(document, dict):
        raise ManifestError(
            [Problem("", "must be a FineTuneClass (got something that is not a mapping)")]
        )
    _check_size(document)
    try:
        return FineTuneClass.model_validate(_without_nulls(document), by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(problems(error)) from error


def read_study(path: Path) -> FineTuneStudy:
    """The study in the YAML or JSON file `path`. Raises ManifestError, or OSError if it cannot be read."""
    return _read(path, parse_study)


def read_class(path: Path) -> FineTuneClass:
    """The class in such a file. Raises ManifestError, or OSError if it cannot be read."""
    return _read(path, parse_class)


def _read(path: Path, parse: Callable[[Any], _T]) -> _T:
    text = _decoded(path.read_bytes())
    document = load_yaml(text)
    if document is None:
        raise ManifestError([Problem("", "the file is empty")])
    try:
        return parse(document)
    except ManifestError as error:
        lines = _lines(text)
        raise ManifestError(
            [replace(problem, line=_line(problem.field, lines)) for problem in error.problems]
        ) from error


def _line(field: str, lines: dict[str, int]) -> int | None:
    """The line of a field or, if it is not there, of what it is missing in."""
    while field and field not in lines:
        field = field[: max(0, field.rfind("."), field.rfind("["))]
    return lines.get(field)


_MARKS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"\x1f\x8b", "compressed with gzip"))


def _decoded(content: bytes) -> str:
    """The text of a manifest. Raises ManifestError if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = next((name for mark, name in _MARKS if content.startswith(mark)), "")
        line = content[: error.start].count(b"\n") + 1
        why = f"it is {found}" if found else f"line {line} has other bytes"
        raise ManifestError([Problem("", f"must be UTF-8 text ({why})")]) from error


def _lines(text: str) -> dict[str, int]:
    """The line, from 1, of each field of a document that can be read."""
    lines: dict[str, int] = {}

    def walk(node: Any, path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            return
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = f"{path}.{key.value}" if path else str(key.value)
                lines[here] = key.start_mark.line + 1
                walk(value, here, depth + 1)
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                here = f"{path}[{number}]"
                lines[here] = value.start_mark.line + 1
                walk(value, here, depth + 1)

    walk(yaml.compose(text, Loader=_Loader), "", 0)
    return lines


def _check_size(document: Any) -> None:
    left, found = [(document, 0)], 0
    while left:
        value, depth = left.pop()
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(value, dict | list):
            found += len(value)
            if depth >= MAX_DEPTH or found > MAX_VALUES:
                raise ManifestError([_too_large()])
            left.extend((child, depth + 1) for child in inner)


def _too_large() -> Problem:
    return Problem(
        "", f"must be nested at most {MAX_DEPTH} deep, and have at most {MAX_VALUES} values"
    )


def _without_nulls(value: Any) -> Any:
    # The API server drops null fields before it fills in defaults; nulls in lists stay, and are refused.
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


_MESSAGES = {
    "missing": "must be given",
    "extra_forbidden": "must be a known field",
    "literal_error": "must be one of {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
}


def problems(error: ValidationError, document: Any = None) -> list[Problem]:
    """The problems in our own words, with fields relative to what was validated.

    `document` is given for a whole study, to which hints are added.
    """
    spec = document.get("spec") if isinstance(document, dict) else None
    task = str(spec.get("task")) if isinstance(spec, dict) else ""
    found: dict[Problem, None] = {}  # each once, in order
    for item in error.errors():
        path = dotted(item["loc"])
        if item["type"] == "rule":
            for field, text in item["ctx"]["broken"]:
                found[Problem(path + field if path else field.lstrip("."), text)] = None
            continue
        problem = _own(item["loc"], item["type"], item["input"])
        found[problem or Problem(path, _message(item, task, whole=document is not None))] = None
    return list(found)


def _own(location: Sequence[int | str], kind: str, value: Any) -> Problem | None:
    """A problem that says more than pydantic's."""
    if tuple(location) == ("metadata", "name") and kind == "string_type":
        message = name_problem(value)
        return None if message is None else Problem("metadata.name", message)
    match = re.fullmatch(r"(.*\.when\.(\w+))(\[\d+\])?", dotted(location))
    refused = when_may_not_name(match[2]) if match else None
    return Problem(match[1], refused) if match and refused else None


def _message(item: Any, task: str, whole: bool) -> str:
    """What one of pydantic's errors says, with hints if it is about a `whole` study."""
    context, kind, value = item.get("ctx", {}), item["type"], item["input"]
    template = _MESSAGES.get(kind)
    message = template.format(**context) if template else str(item["msg"])
    if kind == "literal_error":
        message = _choice(context["expected"], value, task)
    elif kind not in ("missing", "extra_forbidden", "credentials"):  # which are not repeated
        message += f" (got {_short(value)})"
    if whole:
        more = hint(FineTuneStudy, item["loc"], kind, value)
        message += more.replace(EXAMPLE_METRIC, usual_metric(task))
    return message


def _choice(expected: str, value: Any, task: str) -> str:
    """What to write in place of `value`, which is none of the words that pydantic lists in `expected`."""
    words = tuple(re.findall(r"'([^']*)'", expected))
    known = metrics_of(task)
    if set(words) == set(METRIC_WORDS) and known:
        expected = f"a metric of {task}: {', '.join(known)}, each also @worst or @gap of slices"
        words = tuple(word for word in words if plain(word) in known)
    else:
        expected = f"one of {expected}" if len(words) > 1 else words[0]
    meant = nearest(value, words) if isinstance(value, str) else None
    return f"must be {expected} (got {_short(value)}{f'; did you mean {meant}?' if meant else ''})"


def _short(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
