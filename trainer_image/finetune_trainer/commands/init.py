"""`finetune init`: the manifest of a first study, from a data file."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.table import Table

from finetune_api.tasks import Task
from finetune_trainer.errors import SpecError

if TYPE_CHECKING:  # they import pyarrow
    from finetune_trainer.drafts.columns import Column
    from finetune_trainer.drafts.manifest import Draft
    from finetune_trainer.drafts.roles import Question


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune init`."""
    parser.add_argument(
        "data",
        metavar="DATA",
        help="CSV, TSV, JSON, JSON lines, Parquet or CoNLL file, perhaps compressed (.gz)",
    )
    parser.add_argument(
        "--into", type=Path, default=Path("study.yaml"), help="the manifest (default study.yaml)"
    )
    parser.add_argument(
        "--text-column",
        dest="texts",
        metavar="C",
        action="extend",
        nargs="+",
        default=[],
        help="column of texts; two are read as a pair, more are joined",
    )
    parser.add_argument("--label-column", dest="label", metavar="C", help="column of labels")
    parser.add_argument("--task", choices=get_args(Task), help="what is learned")
    parser.add_argument("--model", help="folder of the pretrained model, or its hub id")
    parser.add_argument("--name", help="name of the study (default: that of the file)")
    parser.add_argument("--minutes", type=int, help="longest search, in minutes (default 60)")
    parser.add_argument(
        "--yes", action="store_true", help="ask nothing: take the best guess and say so"
    )
    parser.add_argument(
        "--output", choices=("text", "json"), default="text", help="how to print it (default text)"
    )


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Look at the data and write the manifest; 1 if `finetune plan` would refuse the rows."""
    from finetune_api.manifest import load_yaml, parse_study
    from finetune_trainer.drafts.check import refusal_of_rows
    from finetune_trainer.drafts.manifest import manifest_of

    said = console if parsed.output == "text" else Console(stderr=True)
    asking = sys.stdin.isatty() and sys.stdout.isatty() and not parsed.yes
    _refuse_existing(parsed.into, asking, said)
    guesses: list[Question] = []
    draft, columns = _draft(parsed, said, asking, guesses)
    text = manifest_of(draft)
    study = parse_study(load_yaml(text))
    parsed.into.parent.mkdir(parents=True, exist_ok=True)
    parsed.into.write_text(text, encoding="utf-8")
    _write_schema(parsed.into.parent / draft.schema)
    refusal = refusal_of_rows(study.spec, parsed.into.parent)
    if parsed.output == "json":
        print(
            json.dumps(_facts(parsed.into, draft, guesses, refusal), ensure_ascii=False, indent=2)
        )
    else:
        _show(draft, columns, console)
    for guess in guesses:
        others = f" (or {', '.join(guess.others)})" if guess.others else ""
        said.print(f"guessed {guess.option} {guess.best}{others}", highlight=False, markup=False)
    if refusal is not None:
        said.print(
            f"wrote {parsed.into}, but finetune plan refuses it: {refusal}",
            highlight=False,
            markup=False,
        )
        return 1
    said.print(f"wrote {parsed.into}; next:", highlight=False, markup=False)
    for command in ("plan", "run"):
        said.print(f"  finetune {command} {parsed.into}", highlight=False, markup=False)
    return 0


def _draft(
    parsed: argparse.Namespace, said: Console, asking: bool, guesses: "list[Question]"
) -> "tuple[Draft, list[Column]]":
    """What the file and the arguments make of a study, and the columns of the file."""
    from finetune_api.editor_schema import STUDY_SCHEMA
    from finetune_trainer.drafts import choices, facts, manifest, roles, sources

    def answer(question: roles.Question) -> str:
        if asking:
            return _ask(question, said)
        guesses.append(question)
        return question.best

    minutes = choices.MINUTES if parsed.minutes is None else parsed.minutes
    if minutes < 1:
        raise SpecError("--minutes", f"must be at least 1 (got {minutes})")
    location, folder = parsed.data, parsed.into.parent
    columns, layout, unread = sources.read_table(location)
    if unread:
        said.print(f"warning: {unread} rows cannot be read", highlight=False)
    given = roles.Given(tuple(parsed.texts), parsed.label, parsed.task)
    found = roles.roles_of(columns, given, answer)
    counted = facts.facts_of(found)
    name = parsed.model or choices.usual_model(counted)
    model = sources.model_of(name, folder, facts.texts_of(found))
    read = (*found.texts, *found.labels, *([found.tokens] if found.tokens else []))
    draft = manifest.Draft(
        name=parsed.name or manifest.study_name(os.path.basename(location).partition(".")[0]),
        schema=STUDY_SCHEMA,
        source=sources.source_of(location, layout, [column.name for column in read], folder),
        roles=found,
        facts=counted,
        model=model,
        choices=choices.choose(found.task, counted, model, minutes),
    )
    return draft, columns


def _refuse_existing(path: Path, asking: bool, said: Console) -> None:
    """Ask before a file is overwritten. Raises SpecError if nobody can be asked, or the answer is no."""
    if not path.exists():
        return
    if asking and not path.is_dir():
        typed = said.input(f"{path} exists. Overwrite it? \\[y/N] ")
        if typed.strip().lower() in ("y", "yes"):
            return
    raise SpecError("--into", f"must be a file that is not there yet (got {os.path.abspath(path)})")


def _ask(question: "Question", said: Console) -> str:
    """The answer at the terminal; nothing typed is the best guess."""
    options = (question.best, *question.others)
    said.print(question.text, highlight=False, markup=False)
    for number, option in enumerate(options, start=1):
        said.print(f"  {number} {option}", highlight=False, markup=False)
    while True:
        typed = said.input(f"1 to {len(options)} \\[1]: ").strip()
        if typed in options or not typed:
            return typed or question.best
        if typed.isdecimal() and 1 <= int(typed) <= len(options):
            return options[int(typed) - 1]


def _write_schema(path: Path) -> None:
    """The schema beside the manifest, for editors, unless there is one; `finetune schema` prints it too."""
    from finetune_api.editor_schema import as_text, study_schema

    if not path.exists():
        path.write_text(as_text(study_schema()), encoding="utf-8")


def _show(draft: "Draft", columns: "list[Column]", console: Console) -> None:
    """What was found, as a short table and a few lines."""
    from finetune_trainer.data.formats import quoted

    table = Table("column", "holds", "values", "is")
    roles = draft.roles
    used = dict.fromkeys(roles.texts, "text")
    used |= dict.fromkeys(roles.labels, "labels")
    used |= dict.fromkeys(roles.groups, "a group?")
    if roles.tokens is not None:
        used[roles.tokens] = "words"
    for column in columns:
        shown = f"{column.distinct:,} in {column.filled:,} rows"
        holds = column.form.lower()
        if column.form == "Text":
            holds = f"text of {column.words:.0f} words" if column.words >= 1.5 else "words"
        table.add_row(quoted(column.name), holds, shown, used.get(column, ""))
    console.print(table, markup=False)
    for line in _lines(draft):
        console.print(line, highlight=False, markup=False)


def _lines(draft: "Draft") -> Iterator[str]:
    facts, choices = draft.facts, draft.choices
    yield f"task: {draft.roles.task}; {facts.usable:,} of {facts.rows:,} rows have a text and a label"
    if facts.classes:
        (most, many), (least, few) = facts.classes[0], facts.classes[-1]
        yield f"classes: {len(facts.classes)}, from {many:,} ({most}) to {few:,} ({least})"
    lengths = facts.characters
    told = (
        f"{lengths.median} characters (median), {lengths.most} (95 %), {lengths.longest} (longest)"
    )
    tokens = draft.model.tokens
    if tokens is not None:
        told += f"; {tokens.median}, {tokens.most} and {tokens.longest} tokens"
    yield f"texts: {told}; maxLength {choices.max_length}"
    if facts.duplicates:
        yield f"duplicates: {facts.duplicates:,} (rows with the texts of an earlier row), left out"
    absent = "" if draft.model.family else " (not on this machine: finetune plan downloads it)"
    yield f"model: {draft.model.name}{absent}"


def _facts(
    into: Path, draft: "Draft", guesses: "list[Question]", refusal: str | None
) -> dict[str, Any]:
    """The same for programs."""
    roles = draft.roles
    return {
        "manifest": str(into),
        "name": draft.name,
        "task": roles.task,
        "textColumns": [column.name for column in roles.texts],
        "labelColumns": [column.name for column in roles.labels],
        "groupColumns": [column.name for column in roles.groups],
        "facts": asdict(draft.facts),
        "model": asdict(draft.model),
        "choices": asdict(draft.choices),
        "guesses": [asdict(guess) for guess in guesses],
        "refusal": refusal,
    }
