"""`finetune export`: a model as ONNX, or the trials of a study for other tools."""

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from finetune_trainer.errors import SpecError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune export`."""
    parser.add_argument("folder", type=Path, help="folder of a study, or (--onnx) of a model")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--onnx", type=Path, metavar="FILE", help="write the model as ONNX, compared with PyTorch"
    )
    what.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each trial")
    what.add_argument("--parquet", type=Path, metavar="FILE", help="the same as Parquet")
    what.add_argument(
        "--optuna",
        type=Path,
        metavar="FILE",
        help="write the trials as a study of Optuna into an SQLite database (new, or replacing what was exported before)",
    )


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Write it; 1 if the model has no ONNX that says the same."""
    target: Path = parsed.onnx or parsed.csv or parsed.parquet or parsed.optuna
    if not target.absolute().parent.is_dir():
        raise SpecError("FILE", f"must be in a folder that exists (got {target})")
    if parsed.onnx is not None:
        return _write_onnx(parsed.folder, target)
    from finetune_trainer.search.recorded import recorded
    from finetune_trainer.search.results import table

    study = recorded(parsed.folder)
    if parsed.optuna is not None:
        from finetune_trainer.search.optuna_study import optuna_study, times_of

        with _database(target, study.name) as storage:
            optuna_study(study.state, times_of(study.events), study.name, storage)
        name = f"study {study.name} with {len(study.state.trials)} trials"
        return _tell(f"{name}: optuna-dashboard sqlite:///{target}")
    import pyarrow.csv
    import pyarrow.parquet

    trials = table(study.state)
    if parsed.csv is not None:
        pyarrow.csv.write_csv(trials, target)
    else:
        pyarrow.parquet.write_table(trials, target)
    return _tell(f"{len(trials)} trials: {target}")


def _tell(text: str) -> int:
    print(text, file=sys.stderr)
    return 0


@contextmanager
def _database(path: Path, name: str) -> Iterator["BaseStorage"]:
    """Optuna's database in a file, without the study of that name. Raises SpecError if the file is something else."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    storage = None
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path.absolute()}")
        if name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        yield storage
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        why = str(error).partition("\n")[0]
        must = "must be a database of Optuna, or a new file"
        raise SpecError("--optuna", f"{must} (got {path}: {why})") from error
    finally:
        if storage is not None:
            storage.engine.dispose()


def _write_onnx(path: Path, target: Path) -> int:
    from finetune_trainer.artifacts.about import about_of, model_folder
    from finetune_trainer.artifacts.ensemble import ABOUT, MEMBERS
    from finetune_trainer.artifacts.exported import LoadedModel
    from finetune_trainer.artifacts.onnx_export import OnnxRefused, example_batches, write_onnx

    folder = model_folder(path)
    if (folder / ABOUT).is_file():
        names = sorted(each.name for each in (folder / MEMBERS).iterdir())
        text = f"must be a single model (got an ensemble of {folder / MEMBERS}: {', '.join(names)})"
        raise SpecError("MODEL", text)
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it warns of libraries that nobody needs
    rows, model = about_of(folder).rows_of(), LoadedModel.of(folder)
    columns = 1 if rows.join_text_columns else len(rows.read)
    try:
        worst = write_onnx(model.model, example_batches(model, columns), target)
    except OnnxRefused as error:
        target.unlink(missing_ok=True)
        print(f"finetune: no ONNX for {error}", file=sys.stderr)
        return 1
    compared = f"outputs differ from PyTorch by at most {worst:.1g}"
    return _tell(f"{target}: {compared} (relative to the largest, if that is above 1)")
