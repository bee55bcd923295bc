"""What is shown while a study is waited for, by where it is shown."""

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from finetune_client.progress import screen
from tests.client.found import failed, status, view

RUNNING = view({"observedGeneration": 1, "state": "Running", "trials": {"summary": "1/4"}})


def test_terminal_shows_a_bar_and_keeps_its_last_line() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    with screen(True, console) as shown:
        shown.show(RUNNING)
        shown.show(view(status()))
    assert "━" * 60 in file.getvalue()
    assert "Complete: 4/4 trials, best f1_macro 0.9123 ± 0.0040 (trial 1)" in file.getvalue()


def test_file_gets_a_line_for_each_change() -> None:
    file = io.StringIO()
    with screen(True, Console(file=file, width=40)) as shown:
        for each in (RUNNING, RUNNING, view({**failed(), "best": None})):
            shown.show(each)
    assert file.getvalue().splitlines() == [
        "Running: 1/4 trials",
        "Failed: 4/4 trials; spec.dataset: no such column",
    ]


def test_notebook_has_one_table_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    changed: list[str] = []

    def display(table: str, display_id: bool) -> Any:
        assert display_id
        shown.append(table)
        return SimpleNamespace(update=changed.append)

    # IPython is no dependency: only a kernel that runs this code brings it.
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    page = SimpleNamespace(HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython.display", page)
    with screen(True) as screens:
        screens.show(RUNNING)
        screens.show(view(status()))
    assert len(shown) == len(changed) == 1
    assert "Running" in shown[0]
    assert "f1_macro 0.9123 ± 0.0040" in changed[0]
