"""The page of a report: what is in it, and that data stay data."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_reports.document import Objective, Report
from finetune_reports.figures.figure import label
from finetune_reports.page import comparison_of, figures_of, page_of
from finetune_reports.tables import differing
from finetune_trainer.cli import main
from tests.reports.hostile import HOSTILE, hostile_report
from tests.reports.studies import report, searched

pytestmark = pytest.mark.in_memory


class Page(HTMLParser):
    """The elements and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._in: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = dict(attrs) if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._in is not None:
            self.scripts.append((self._in, data))
        else:
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._in = None


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(searched(tmp_path_factory.mktemp("reports") / "study"))


def test_a_search_has_its_figures(study: Report) -> None:
    found = [figure.id for figure in figures_of(study)]
    assert found == [
        *("history", "over-hours", "curves", "importances", "slices", "parallel", "timeline"),
    ]
    assert all(figure.caption.endswith(".") for figure in figures_of(study))


def test_several_objectives_have_their_front(study: Report) -> None:
    second = Objective(metric="loss", goal="Minimize")
    trials = [
        trial.model_copy(
            update={"metrics": {"loss": 1.0 - 0.05 * trial.number}, "pareto": trial.number % 3 == 0}
        )
        for trial in study.trials
    ]
    changed = study.model_copy(update={"objectives": [study.objective, second], "trials": trials})
    (front,) = [figure for figure in figures_of(changed) if figure.id == "pareto"]
    drawn = {trace["name"]: len(trace["x"]) for trace in front.traces}
    ranked = changed.ranked
    assert drawn["Pareto front"] == sum(trial.pareto for trial in ranked) > 0
    assert sum(drawn.values()) == len(ranked)


def test_a_page_runs_its_own_scripts_alone(study: Report) -> None:
    page = Page(page_of(study))
    (policy,) = [
        attrs["content"] or ""
        for tag, attrs in page.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    run = [text for attrs, text in page.scripts if attrs.get("type") is None]
    assert {b64encode(sha256(text.encode()).digest()).decode() for text in run} == allowed
    assert not any(attrs.get("src") or attrs.get("onclick") for _, attrs in page.tags)
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "link", "object", "form")]


def test_figures_are_data_in_a_page(study: Report) -> None:
    page = Page(page_of(study))
    (data,) = [text for attrs, text in page.scripts if attrs.get("type") == "application/json"]
    drawn: dict[str, Any] = json.loads(data)
    places = {
        attrs["id"] for tag, attrs in page.tags if (attrs.get("id") or "").startswith("plot-")
    }
    assert places == {f"plot-{name}" for name in drawn}


def test_every_trial_is_in_the_page(study: Report) -> None:
    texts = " ".join(Page(page_of(study)).texts)
    assert "no GPU 3" in texts
    for trial in study.ranked:
        assert f"{trial.value:.4g}" in texts


@settings(max_examples=1000)
@given(st.text(max_size=60) | st.sampled_from(HOSTILE))
def test_texts_of_data_are_no_markup_in_figures(text: str) -> None:
    shown = label(text)
    assert "<" not in shown
    assert ">" not in shown
    assert "$" not in shown
    assert not re.search(r"&(?!(amp|lt|gt|#36);)", shown)


def test_hostile_texts_are_shown_as_text_in_a_page(study: Report) -> None:
    plain, hostile = Page(page_of(study)), Page(page_of(hostile_report(study)))
    texts = "".join(hostile.texts)
    for text in HOSTILE:
        assert " ".join(text.split()) in " ".join(texts.split()), text
    scripts = [len(page.scripts) for page in (plain, hostile)]
    assert scripts[0] == scripts[1]
    known = {
        "tr",
        "td",
        "th",
        "li",
        "p",
        "b",
        "h3",
        "table",
        "thead",
        "tbody",
        "caption",
        "div",
        "span",
    }
    known |= {"details", "summary", "code", "a", "ul", "figure", "figcaption", "h2"}
    assert {tag for tag, _ in hostile.tags} - {tag for tag, _ in plain.tags} <= known


def test_a_comparison_says_where_the_best_differ(tmp_path: Path) -> None:
    one = report(searched(tmp_path / "one"))
    grid = {"algorithm": "Random", "seed": 8}
    other = report(searched(tmp_path / "other", search=grid), search=grid)
    texts = " ".join(Page(comparison_of([one, other])).texts)
    assert set(differing([one, other])) == {"learningRate"}
    assert differing([one, one]) == {}
    assert "2 studies side by side" in texts
    assert "learningRate" in texts


def test_pages_are_written_by_the_command(tmp_path: Path) -> None:
    folders = [str(searched(tmp_path / name)) for name in ("one", "other")]
    assert main(["report", folders[0]]) == 0
    assert (tmp_path / "one" / "results" / "report.html").read_text().startswith("<!doctype html>")
    assert main(["report", *folders, "--into", str(tmp_path / "both.html")]) == 0
    assert "one" in (tmp_path / "both.html").read_text()


def test_ten_thousand_trials_are_under_8_mb(study: Report) -> None:
    trials = [
        trial.model_copy(
            update={"number": number, "place": None if trial.place is None else number + 1}
        )
        for number in range(10_000)
        for trial in [study.trials[number % len(study.trials)]]
    ]
    large = study.model_copy(update={"trials": trials, "spans": study.spans * 1000})
    page = page_of(large)
    assert len(page.encode()) < 8_000_000
    assert "of 9,166 trials are drawn" in page
