"""JSON values, right, nearly right and wrong, and text that is nearly YAML, CEL or JSON, for hypothesis to draw."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from hypothesis import strategies as st

from finetune_api.status import MAX_PROGRESS_BYTES

HERE = "§"
"""Stands where a test puts what no strategy draws: what is nested too deep, and what is no JSON."""

SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["", HERE, "x" * 2000, "ü" * 300, "\x00", "1e400", "2026-11-23T12:00:00"]),
)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)
Path_: TypeAlias = tuple[str | int, ...]


def places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The paths of all values in a value, itself first."""
    yield path
    children: Any = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        yield from places(child, (*path, key))


def edited(value: Any, path: Path_, edit: Callable[[Any], Any]) -> Any:
    """A copy with what stands at `path` edited."""
    if not path:
        return edit(value)
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = edited(copy[path[0]], path[1:], edit)
    return copy


def without(value: Any, path: Path_) -> Any:
    """A copy without what stands at `path`."""

    def remove(parent: Any) -> Any:
        if isinstance(parent, dict):
            return {key: child for key, child in parent.items() if key != path[-1]}
        return [child for index, child in enumerate(parent) if index != path[-1]]

    return edited(value, path[:-1], remove)


@st.composite
def nearly(draw: st.DrawFn, right: Any) -> Any:
    """`right` with some of its parts replaced, removed, or added to."""
    value = right
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(list(places(value))))
        what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        junk = draw(JSON)
        if what == "remove" and path:
            value = without(value, path)
        elif what == "add":
            key = draw(st.text(max_size=8))

            def add(old: Any, key: str = key, junk: Any = junk) -> Any:
                if isinstance(old, dict):
                    return {**old, key: junk}
                return [*old, junk] if isinstance(old, list) else junk

            value = edited(value, path, add)
        elif path:

            def replaced(_: Any, junk: Any = junk) -> Any:
                return junk

            value = edited(value, path, replaced)
    return value


def nested(depth: int) -> Any:
    """Lists and objects in each other, so many."""
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"x": value}
    return value


def with_nested(value: Any, depth: int) -> Any:
    """`value` with something that deep in the place of HERE."""
    for path in list(places(value)):
        found = value
        for key in path:
            found = found[key]
        if found == HERE:
            return edited(value, path, lambda _: nested(depth))
    return value


DEPTHS = st.sampled_from([0, 10, 60, 70, 300, 1500, 20_000])
_YAML = (
    "a: ", "b: ", "- ", "? ", ": ", "<<: ", "\n", "\n  ", "\n- ", "---\n", "...\n", "#", "|", ">", "=", "\t",
    "[", "]", "{", "}", ", ", "&a ", "*a", "&a [*a]", "{[a]: b}", "? {a: b}\n: c\n", "spec: ", "task: ", "ü",
    "!!int ", "!!float ", "!!bool ", "!!null ", "!!str ", "!!map ", "!!seq ", "!x ", "!!timestamp ", "!!binary ",
    "!!set ", "!!omap ", "!!pairs ", "!!merge ", "!!value ", "!!python/object:os.system ", "%YAML 9.9\n", "%x\n",
    "0x_", "0b", "0b_", "0o_", "08", "0_9", "1_", "-", "+1", "1e999", "9" * 30, "9" * 5000, "0x" + "f" * 30,
    "0x" + "f" * 5000, ".nan", "-.inf", "2001-01-01", "1:30", "~", "y", "'", '"', '"\\ud800"', '"\\U00110000"',
    '"\\UFFFFFFFF"', '"\\x"', "\x00", "\ufeff", "[" * 2000, "{a: " * 2000, "- " * 2000, "x" * 100,
)  # fmt: skip
YAML = st.lists(st.sampled_from(_YAML), max_size=12).map("".join)

_CEL = (
    "batchSize", "learningRate", "optimizer", "epochs", "nosuch", "x", "self", "null", "true", "batchSize < 64",
    "1", "0", "-1", "2u", "1.5", "1e400", "9" * 30, "'a'", '"', "b'a'", "[]", "{}", "[1, 2]", "\\", "\n", "ü", " ",
    "+", "-", "*", "/", "%", "<", "<=", "==", "!=", "&&", "||", "!", "?", ":", ".", ",", "(", ")", "[", "]", "{", "}",
    "in ", "size(", "has(", "int(", "double(", "string(", ".all(x, ", ".map(x, ", ".matches(", "'a'.size()",
    "duration('1s')", "timestamp('x')", "(" * 40, "!" * 40, "-" * 40, "[" * 40,
)  # fmt: skip
CEL = st.lists(st.sampled_from(_CEL), min_size=1, max_size=12).map("".join)

WORDS = st.text(max_size=40) | st.sampled_from(["", "x" * 5000, "a\nb", "ü" * 2000])
_NO_JSON = (
    "NaN", "Infinity", "-Infinity", "1e400", "-0", "01", "9" * 100, "9" * 5000, "1.0", "1e3", '"\\ud800"',
    '"\\u0000"', '"\\x"', "", "tru", "'", "/*", '{"a":1,"a":2}', "[" * 4000 + "]" * 4000,
    '{"x":' * 150 + "1" + "}" * 150, '"' + "x" * MAX_PROGRESS_BYTES + '"',
)  # fmt: skip
NO_JSON = st.sampled_from(_NO_JSON)
"""Text to put into JSON: numbers and words that it does not know, and what is too long or too deep."""
