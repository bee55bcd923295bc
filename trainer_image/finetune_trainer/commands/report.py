"""`finetune report`: the report of a study at any time, or several studies side by side."""

import argparse
import time
from pathlib import Path

from rich.console import Console

from finetune_reports.document import Report
from finetune_trainer.errors import SpecError
from finetune_trainer.report import Subject, report_of, subject_in
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.glance import is_held
from finetune_trainer.storage.layout import REPORT_PAGE

COMPARISON = Path("comparison.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune report`."""
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="+",
        type=Path,
        help="folder of a study, such as runs/NAME",
    )
    parser.add_argument(
        "--into",
        type=Path,
        help=f"file to write (default: {REPORT_PAGE} in the folder; of several studies {COMPARISON} here)",
    )
    parser.add_argument(
        "--output",
        choices=("html", "json"),
        default="html",
        help="json: print the document that the page is drawn from",
    )


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Draw the page, or print the documents, one a line."""
    reports = [document_in(folder) for folder in parsed.folders]
    if parsed.output == "json":
        for report in reports:
            print(report.to_json(), end="")
        return 0
    from finetune_reports.page import comparison_of, page_of  # imports Plotly and Optuna

    if len(reports) == 1:
        into, page = parsed.into or parsed.folders[0] / REPORT_PAGE, page_of(reports[0])
    else:
        into, page = parsed.into or COMPARISON, comparison_of(reports)
    into.parent.mkdir(parents=True, exist_ok=True)
    into.write_text(page, "utf-8")
    console.print(f"report: {into.absolute()}", highlight=False)
    return 0


def document_in(folder: Path) -> Report:
    """The document of the study in a folder as it is now. Raises StudyError where there is none, or a broken one."""
    try:
        found = subject_in(folder)
        if isinstance(found, Subject):
            storage, works = Storage.open(str(folder)), is_held(folder)
            return report_of(found, storage, time.time(), is_working=works)
        return found
    except ValueError as error:  # records of another version, or damaged
        told = f"must have records that this version can read (got {folder}: {error})"
        raise SpecError("FOLDER", told) from error
