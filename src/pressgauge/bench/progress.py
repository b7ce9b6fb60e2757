"""Progress of a sweep on the standard error: a bar on a terminal, a line a minute in a log."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

EVERY = 60.0
"""Seconds between two lines of a log."""


class Progress:
    """What is being done, rows done and to go, and the time left; a context manager.

    Args:
        rows: rows of the sweep.
        steps: steps of each row.
        console: where to show it.
        clock: time in seconds.
    """

    def __init__(self, rows: int, steps: int, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.rows = rows
        self.steps = steps
        self._console = console
        self._clock = clock
        self._done = 0
        self._resumed = 0
        self._began: float | None = None
        self._shown = clock()
        self._bar: Bar | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), _State(self))
            self._bar = Bar(*columns, console=console, transient=True, get_time=clock)
            self._task = self._bar.add_task("checking models and texts", total=rows * steps)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def left(self) -> float | None:
        """Seconds left, at the speed of the steps measured so far; None before the first."""
        measured = self._done - self._resumed
        if self._began is None or measured == 0:
            return None
        return (self._clock() - self._began) / measured * (self.rows * self.steps - self._done)

    @property
    def state(self) -> str:
        """Rows done, and the time left."""
        text = f"{self._done // self.steps} of {self.rows} rows"
        if self._resumed:
            text += f" ({self._resumed // self.steps} resumed)"
        return text if self.left is None else f"{text}, {duration(self.left)} left"

    def resume(self, steps: int) -> None:
        """Count the next steps as done before, so that they are not part of the speed."""
        self._resumed += steps

    def advance(self, what: str, steps: int) -> None:
        """Show what is being done.

        Args:
            what: the current work.
            steps: steps done since the last call.
        """
        if steps == 0 and self._done == self._resumed:
            # The time of preparation is not part of the speed.
            self._began = self._clock()
        self._done += steps
        if self._bar is not None:
            self._bar.update(self._task, description=escape(what), completed=self._done)
        elif self._clock() - self._shown >= EVERY:
            self._shown = self._clock()
            self._console.print(f"{what}: {self.state}", markup=False, highlight=False, soft_wrap=True)


class _State(ProgressColumn):
    """Rows done and time left, as of when they are drawn."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        return Text(self._progress.state)


def duration(seconds: float) -> str:
    """A duration in its largest unit, such as ``40 s``, ``5 min`` or ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
