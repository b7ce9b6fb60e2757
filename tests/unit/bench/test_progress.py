"""Progress: a bar on a terminal, a line a minute in a log, and the time left."""

import io
import re

import pytest
from rich.console import Console

from pressgauge.bench.progress import Progress, duration


class Clock:
    """A clock that is set by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def progress(rows: int, steps: int = 1, *, terminal: bool = False) -> tuple[Progress, Clock, io.StringIO]:
    """Progress with a clock of its own, and what it shows."""
    clock, shown = Clock(), io.StringIO()
    return Progress(rows, steps, Console(file=shown, force_terminal=terminal, width=120), clock), clock, shown


def test_a_log_has_a_line_a_minute_at_most() -> None:
    """Of 500 rows of one second, a log names one per minute, with rows done and the time left."""
    bar, clock, shown = progress(500)
    with bar:
        for row in range(500):
            bar.advance(f"row {row}", 0)
            clock.now += 1
            bar.advance(f"row {row}", 1)
    lines = shown.getvalue().splitlines()
    assert len(lines) == 500 // 60
    assert lines[0] == "row 59: 60 of 500 rows, 7 min left"
    assert lines[-1] == "row 479: 480 of 500 rows, 20 s left"


def test_a_short_sweep_leaves_no_line_in_a_log() -> None:
    """Within the first minute nothing is printed."""
    bar, clock, shown = progress(2)
    with bar:
        clock.now += 59
        bar.advance("row", 0)
        bar.advance("row", 1)
    assert shown.getvalue() == ""


def test_the_time_left_is_that_of_the_rows_to_measure() -> None:
    """Neither preparation nor resumed rows are part of the speed; later loading is."""
    bar, clock, _ = progress(10, steps=2)
    assert bar.left is None
    clock.now += 300
    for _ in range(4):
        bar.advance("resumed", 0)
        bar.resume(2)
        bar.advance("resumed", 2)
    assert bar.left is None
    assert bar.state == "4 of 10 rows (4 resumed)"
    bar.advance("measured", 0)
    clock.now += 10
    bar.advance("measured", 1)
    # Eleven steps of 10 s.
    assert bar.left == pytest.approx(110)
    assert bar.state == "4 of 10 rows (4 resumed), 2 min left"
    clock.now += 10
    bar.advance("measured", 1)
    clock.now += 20
    bar.advance("loading", 0)
    assert bar.left == pytest.approx(20 * 10)


def test_a_terminal_has_a_bar() -> None:
    """On a terminal, the bar has the current work, rows and time left, and is removed at the end."""
    bar, clock, shown = progress(4, terminal=True)
    with bar:
        bar.advance("[red]model[/] on text: knorm", 0)
        clock.now += 30
        bar.advance("[red]model[/] on text: knorm", 1)
        clock.now += 1
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
    assert "[red]model[/] on text: knorm" in text
    assert re.search(r"━.* 1 of 4 rows, 2 min left", text), text
    assert "checking models and texts" in text or "knorm" in text
    # The cursor is shown again, and the line erased.
    assert "\x1b[?25h" in shown.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3570, "1 h 0 min"), (7800, "2 h 10 min")]
)
def test_durations_are_in_their_largest_units(seconds: float, text: str) -> None:
    """Durations are rounded to what is worth reading."""
    assert duration(seconds) == text
