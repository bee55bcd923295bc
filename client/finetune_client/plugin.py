"""The command `kubectl finetune`: what kubectl alone does not show of studies, and suspend, resume and retry."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from finetune_api.manifest import dump_yaml
from finetune_api.texts import plain
from finetune_client import facts
from finetune_client.errors import BadConfiguration, ClientError, NotFound, StudyFailed
from finetune_client.handle import StudyHandle
from finetune_client.studies import Studies
from finetune_client.tables import best_page, status_page, studies_table

_WIDE = 200
"""Columns where no terminal says how many there are: a file's lines need not be cut."""

_PROGRAM = "kubectl finetune"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if it is done, 1 if what was asked for failed, 2 if what was given is wrong, 130 if interrupted.

    `status` and `best` of a study that has failed are done, and end with 1.
    """
    parsed = _parser().parse_args(arguments)
    try:
        with Studies(parsed.namespace, parsed.context, parsed.kubeconfig) as studies:
            code: int = _WORDS[parsed.word](studies, parsed)
            sys.stdout.flush()
            return code
    except (BadConfiguration, NotFound) as error:
        return _told(error, 2)
    except ClientError as error:
        return _told(error, 1)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _told(error: ClientError, code: int) -> int:
    print(f"{_PROGRAM}: {plain(error)}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-n", "--namespace", help="default: that of the context")
    common.add_argument("--context", help="context of the kubeconfig; default: the current one")
    common.add_argument("--kubeconfig", help="default: $KUBECONFIG, else ~/.kube/config")
    common.add_argument(
        "-o", "--output", choices=("table", "json", "yaml"), default="table", help="default: table"
    )
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Shows FineTuneStudies and what they found; suspends, resumes and retries them.",
        epilog="Exit codes: 0 done, 1 the study has failed or what was asked for did, 2 what was given is wrong, "
        "130 interrupted.",
    )
    words = parser.add_subparsers(dest="word", required=True)
    ls = _add(words, common, "ls", "list the studies of the namespace", named=False)
    ls.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    _add(words, common, "status", "show where a study stands; exit code 1 if it has failed")
    _add(words, common, "why", "say why a study waits or has failed; exit code 1 if it has failed")
    logs = _add(words, common, "logs", "print the log of the study's driver")
    logs.add_argument("-f", "--follow", action="store_true", help="until the driver ends")
    logs.add_argument("--pod", help="another pod of the study")
    _add(words, common, "best", "show the best trial; --output yaml can be pasted into a manifest")
    report = _add(words, common, "report", "draw what the status says as a page")
    report.add_argument("--into", type=Path, help="file to write (default: NAME.html)")
    _add(words, common, "suspend", "end the study's pods and keep its records")
    _add(words, common, "resume", "let a suspended study go on")
    _add(words, common, "retry", "let a study that has failed or stalled try again")
    return parser


def _add(
    words: Any, common: argparse.ArgumentParser, word: str, told: str, named: bool = True
) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = words.add_parser(
        word, help=told, description=told[0].upper() + told[1:] + ".", parents=[common]
    )
    if named:
        added.add_argument("name", help="of the study")
    return added


def _ls(studies: Studies, parsed: argparse.Namespace) -> int:
    views = [study.last for study in studies.list(parsed.all_namespaces)]
    if not views and parsed.output == "table":
        where = "" if parsed.all_namespaces else f" in the namespace {studies.namespace}"
        print(f"no studies{where}", file=sys.stderr)
        return 0
    _show(
        parsed.output,
        [facts.row(view) for view in views],
        lambda: studies_table(views, parsed.all_namespaces),
    )
    return 0


def _status(studies: Studies, parsed: argparse.Namespace) -> int:
    study = studies.get(parsed.name)
    why = study.why()
    view = study.last
    _show(parsed.output, facts.report(view, why), lambda: status_page(view, why))
    return int(view.status.is_true("Failed"))


def _why(studies: Studies, parsed: argparse.Namespace) -> int:
    study = studies.get(parsed.name)
    why = study.why()
    nothing = f"{study.name} does not wait: {study.last.state}"
    lines = "\n".join(map(plain, why)) or plain(nothing)
    _show(parsed.output, {"name": study.name, "why": why}, lambda: Text(lines))
    return int(study.last.status.is_true("Failed"))


def _logs(studies: Studies, parsed: argparse.Namespace) -> int:
    study = studies.get(parsed.name)
    if not parsed.follow:
        sys.stdout.write(study.logs(pod=parsed.pod))
        return 0
    for line in study.logs(follow=True, pod=parsed.pod):
        print(line, flush=True)
    return 0


def _best(studies: Studies, parsed: argparse.Namespace) -> int:
    study = studies.get(parsed.name)
    view, best = study.last, study.last.best
    if best is None:
        failed = view.status.condition("Failed")
        if failed is not None and failed.status == "True":
            raise StudyFailed(study.name, failed.reason, failed.message)
        raise ClientError(f"{study.name} has no best trial yet: none has a value")
    if parsed.output == "yaml":
        print(f"# {plain(study.name)}, trial {best.trial}: {best.metric} {best.interval}")
        print(dump_yaml(facts.hyperparameters(view, best)), end="")
    else:
        _show(parsed.output, facts.best(best), lambda: best_page(best))
    return int(view.status.is_true("Failed"))


def _report(studies: Studies, parsed: argparse.Namespace) -> int:
    study = studies.get(parsed.name)
    report = study.report()
    if parsed.output == "json":
        print(report.to_json(), end="")
        return 0
    from finetune_reports.page import page_of  # imports Plotly

    into: Path = parsed.into or Path(f"{study.name}.html")
    try:
        into.write_text(page_of(report), "utf-8")
    except OSError as error:
        raise BadConfiguration(f"--into must be a file that can be written: {error}") from error
    told = {"report": str(into.absolute()), "missing": report.missing}
    _show(
        parsed.output,
        told,
        lambda: Text(f"report: {told['report']}\nnot in it: {plain(report.missing)}"),
    )
    return 0


def _change(
    change: Callable[[StudyHandle], object], said: str
) -> Callable[[Studies, argparse.Namespace], int]:
    """A word that changes a study and says what it has done."""

    def done(studies: Studies, parsed: argparse.Namespace) -> int:
        study = studies.get(parsed.name)
        change(study)
        told = {"namespace": study.namespace, "name": study.name, "done": said}
        _show(parsed.output, told, lambda: Text(f"{plain(study.name)}: {said}"))
        return 0

    return done


def _show(output: str, values: Any, page: Callable[[], RenderableType]) -> None:
    """Print the values as JSON or YAML, or the page for people."""
    if output == "json":
        print(json.dumps(values, indent=2))
    elif output == "yaml":
        print(dump_yaml(values), end="")
    else:
        wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
        Console(width=wide, markup=False, highlight=False).print(page())


_WORDS: Mapping[str, Callable[[Studies, argparse.Namespace], int]] = {
    "ls": _ls,
    "status": _status,
    "why": _why,
    "logs": _logs,
    "best": _best,
    "report": _report,
    "suspend": _change(
        StudyHandle.suspend, "spec.suspend is true; its pods save and end, its records stay"
    ),
    "resume": _change(
        StudyHandle.resume, "spec.suspend is false; its next attempt goes on from the records"
    ),
    "retry": _change(
        StudyHandle.retry,
        "its annotation finetune.dev/retry has a new value; if it has failed or stalled, it tries again",
    ),
}

if __name__ == "__main__":
    sys.exit(main())
