"""What others wrote is text wherever it is shown, and numbers are those of the status."""

import io
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from finetune_api.texts import plain
from finetune_client.reasons import Event, why
from finetune_client.tables import status_page
from finetune_client.text import as_html, line_of
from tests.client.found import failed, status, view
from tests.operator.studies import NOW, later

HOSTILE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            "<img src=x onerror='alert(1)'>",
            "</td></tr></table>&lt;b&gt;",
            "\x1b[2J\x1b]0;title\x07",
            "[bold red]x[/]",
            "a\u202egnp",
            "a\r\nb",
        ]
    ),
)


class Cells(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@given(HOSTILE, HOSTILE, HOSTILE)
def test_hostile_texts_are_text_in_a_notebook(name: str, value: str, message: str) -> None:
    best = {"trial": 1, "value": 0.5, "params": {name: value}}
    study = view({**status(), "best": best}, **{"metadata.name": name})
    cells = Cells(as_html(study, [message]))
    assert cells.tags == {"table", "tr", "th", "td", "br"}
    assert cells.attributes == {"style"}
    assert f"{plain(name)}={plain(value)}" in cells.text
    assert plain(message) in cells.text


@given(HOSTILE, HOSTILE)
def test_hostile_texts_are_text_in_a_terminal(name: str, message: str) -> None:
    condition = {**failed()["conditions"][0], "reason": "X", "message": message}
    study = view({**failed(), "message": message, "conditions": [condition]})
    screen = io.StringIO()
    console = Console(file=screen, width=400, markup=False, highlight=False)
    console.print(status_page(study, why(study, [Event(NOW, "Warning", name, message, 1)])))
    shown = screen.getvalue()
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert plain(message).strip() in shown
    assert "\x1b" not in line_of(study)


def test_warnings_tell_why_a_study_failed_the_newest_first_and_each_once() -> None:
    events = [
        Event(NOW, "Warning", "OutOfMemory", "worker 0 was killed", 1),
        Event(later(9), "Warning", "PodsPending", "no node", 1),
        Event(later(5), "Warning", "OutOfMemory", "worker 0 was killed", 1),
        Event(later(10), "Normal", "Queued", "in the queue", 1),
    ]
    assert why(view(failed()), events) == [
        "DataError: spec.dataset: no such column",
        "PodsPending: no node",
        "OutOfMemory: worker 0 was killed",
    ]
    assert why(view(status()), events) == []


def test_edit_that_nobody_has_seen_is_no_end_of_the_study() -> None:
    assert view(status()).is_over
    edited = view(status(), **{"metadata.generation": 2})
    assert not edited.is_over
    asked = {"metadata.annotations": {"finetune.dev/retry": "now"}}
    assert not view(failed(), **asked).is_over
    assert view({**failed(), "retry": "now"}, **asked).is_over
    assert why(view(failed(), **asked))[-1] == "the operator has not seen the last edit yet"


def test_fields_of_a_newer_operator_are_ignored() -> None:
    new = status()
    newer = view({**new, "mood": "good", "best": {**new["best"], "luck": 1}})
    assert newer.best == view(new).best


def test_spending_stands_beside_its_limits() -> None:
    limits = {"maxTrials": 4, "maxGpuHours": 2, "maxPrice": 4, "maxDurationSeconds": 3600}
    spent = {each.what: str(each) for each in view(status(), **{"spec.budget": limits}).spending()}
    assert spent == {
        "trials": "4 of 4",
        "failed trials": "0 of 3",
        "epochs": "6",
        "time": "12 min of 1 h 0 min",
        "GPU hours": "0.5 of 2",
        "price": "1.50 of 4",
    }
