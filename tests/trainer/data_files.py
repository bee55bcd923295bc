"""Small data sets, written to files and prepared as a study prepares them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_trainer.data import PreparedData, prepare
from tests.trainer.conftest import MakeSpec

Row = Mapping[str, Any]


def prepare_rows(
    make_spec: MakeSpec, folder: Path, parts: Mapping[str, Sequence[Row]], **changes: Any
) -> PreparedData:
    """What a study makes of `parts`, written to `folder`; texts in `text`, labels in `label`."""
    files = {}
    for name, rows in parts.items():
        files[name] = f"{name}.jsonl"
        (folder / files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"files": files, "labelColumn": "label", **changes.pop("dataset", {})}
    return prepare(make_spec(dataset=dataset, **changes), folder)


def texts_of(data: PreparedData, part: str, column: int = 0) -> list[str]:
    """The texts of a part as their tokens say them, in the order of the rows."""
    tokenizer = data.model.tokenizer()
    return [tokenizer.decode(data.columns[column][row]) for row in data.part(part)]
