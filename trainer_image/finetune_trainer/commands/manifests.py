"""The manifest that a command is given, and the class to apply to it."""

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from finetune_api.class_rules import refusals, with_class
from finetune_api.manifest import ManifestError, read_class, read_study
from finetune_api.manifest import Problem as Wrong
from finetune_api.study import FineTuneStudy


def add_manifest(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments `study` and `--class`."""
    parser.add_argument("study", type=Path, help="manifest of the study (YAML or JSON)")
    parser.add_argument(
        "--class",
        dest="given",
        metavar="FILE",
        type=Path,
        help="manifest of a FineTuneClass to apply, as a cluster would",
    )


def study_of(parsed: argparse.Namespace, console: Console) -> FineTuneStudy:
    """The study that the arguments name, as the class makes it.

    Raises ManifestError for what is wrong with one of them, or what the class does not allow.
    """
    return _with_class(read_study(parsed.study), parsed.given, console)


def _with_class(study: FineTuneStudy, path: Path | None, console: Console) -> FineTuneStudy:
    """The study as the class in that file makes it. Raises ManifestError for what the class does not allow."""
    named = study.spec.class_name
    if path is None:
        if named is not None:
            said = f"className {named} is ignored here (--class FILE applies a class)"
            console.print(said, highlight=False)
        return study
    try:
        given = read_class(path)
    except ManifestError as error:
        raise ManifestError(
            [replace(each, field=_in(path, each)) for each in error.problems]
        ) from error
    name, namespace = given.metadata.name, study.metadata.namespace or "default"
    if named not in (None, name):
        message = f"must be {name}, the class in {path}, or be left out (got {named})"
        raise ManifestError([Wrong("spec.className", message)])
    refused = refusals(study.spec, namespace, name, given.spec)
    if refused:
        raise ManifestError([Wrong(field, message) for field, message in refused])
    return study.model_copy(update={"spec": with_class(study.spec, given.spec)})


def _in(path: Path, problem: Wrong) -> str:
    """The field of a problem that is in another file than the study."""
    return f"{path}: {problem.field}" if problem.field else str(path)
