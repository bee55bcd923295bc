"""The lines and tables that a terminal and a notebook share."""

import html
from collections.abc import Sequence

from finetune_api.texts import plain
from finetune_api.wording import ended
from finetune_client.view import StudyView


def line_of(view: StudyView) -> str:
    """Where the study stands: `Running: 3/48 trials, best f1_macro 0.9123 (trial 2)`."""
    counts, best = view.status.trials, view.best
    said = f"{view.state or 'Not seen yet'}: {counts.summary or ended(counts)} trials"
    if best is not None:
        said += f", best {best.metric} {best.interval} (trial {best.trial})"
    if view.state not in ("Running", "Refitting", "Complete") and view.status.message:
        said += f"; {view.status.message}"
    return plain(said)


def as_html(view: StudyView, why: Sequence[str]) -> str:
    """A small table about the study. Whatever anybody wrote is text in it."""
    best = view.best
    rows = {
        "study": [f"{view.namespace}/{view.name}"],
        "state": [f"{view.state} ({view.reason})" if view.reason else view.state],
        "best": [] if best is None else [f"{best.metric} {best.interval} (trial {best.trial})"],
        "parameters": []
        if best is None
        else [", ".join(f"{name}={value}" for name, value in best.params.items())],
        "trials": [view.status.trials.summary],
        "spending": [f"{spent.what} {spent}" for spent in view.spending()[1:]],
        "why": list(why),
    }
    cells = (
        f'<tr><th style="text-align:left">{name}</th><td style="text-align:left">'
        f"{'<br>'.join(html.escape(plain(line)) for line in lines)}</td></tr>"
        for name, lines in rows.items()
        if any(lines)
    )
    return f"<table>{''.join(cells)}</table>"
