"""What a person sees while a study is waited for: a bar in a terminal, a table in a notebook, else plain lines."""

import sys
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from finetune_api.wording import ended
from finetune_client.reasons import why
from finetune_client.text import as_html, line_of
from finetune_client.view import StudyView

_BAR_WIDTH = 60


class Screen(Protocol):
    """Shows a study as it changes; a context manager around the wait."""

    def __enter__(self) -> "Screen": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, view: StudyView) -> None:
        """Show where the study stands."""


def screen(progress: bool, console: Console | None = None) -> Screen:
    """The screen for where this process runs."""
    if not progress:
        return _Nothing()
    shell = _shell()
    if console is None and shell is not None:
        return _Notebook()
    console = console or Console()
    return _Terminal(console) if console.is_terminal else _Lines(console)


def _shell() -> Any:
    """The IPython shell of a notebook's kernel; None elsewhere, as in IPython's terminal."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return shell if getattr(shell, "kernel", None) is not None else None


class _Nothing:
    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, view: StudyView) -> None:
        pass


class _Lines(_Nothing):
    """A line each time that there is something else to say."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""

    def show(self, view: StudyView) -> None:
        line = line_of(view)
        if line != self._said:
            self._said = line
            self._console.print(Text(line), soft_wrap=True)


class _Terminal(_Nothing):
    """A line and a bar that change in place; the last line stays."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4)

    def __enter__(self) -> "_Terminal":
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def show(self, view: StudyView) -> None:
        counts = view.status.trials
        bar = ProgressBar(counts.planned, ended(counts), width=_BAR_WIDTH)
        self._live.update(Group(Text(line_of(view)), bar))


class _Notebook(_Nothing):
    """The table of the study, which changes in place, without widgets."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, view: StudyView) -> None:
        from IPython.display import HTML, display

        table = HTML(as_html(view, why(view)))
        if self._handle is None:
            self._handle = display(table, display_id=True)
        else:
            self._handle.update(table)
