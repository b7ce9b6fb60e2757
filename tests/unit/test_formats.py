"""Formats with meaningful digits and readable units."""

import pytest

from pressgauge.formats import DASH, number, percent, ratio, scale, size


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (3.14159, "3.142"), (12.345, "12.35"), (1234.5678, "1,235"), (0.0123456, "0.01235"), (None, "–")],  # noqa: RUF001
)
def test_numbers_have_four_digits(value: float | None, words: str) -> None:
    """A number has four digits, and integers are complete."""
    assert number(value, 4) == words


def test_shares_sizes_and_changes() -> None:
    """Percentages have one decimal below 100 %, and bytes the largest unit with a value of at least 1."""
    assert [percent(0.5), percent(0.0512, "+"), percent(-0.2, "+"), percent(12.3, "+")] == [
        "50.0%", "+5.1%", "-20.0%", "+1,230%",
    ]  # fmt: skip
    assert [size(0), size(1023), size(1024), size(1536), size(1 << 30), size(5 << 50)] == [
        "0 bytes", "1,023 bytes", "1.00 KiB", "1.50 KiB", "1.00 GiB", "5,120 TiB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("unit", "largest", "found"),
    [
        ("bytes", 0, ("bytes", 1)),
        ("bytes", 1023, ("bytes", 1)),
        ("bytes", 1024, ("KiB", 1024)),
        ("bytes", 1 << 50, ("TiB", 1 << 40)),
        ("seconds", 1e-9, ("µs", 1e-6)),
        ("seconds", 0.001, ("ms", 1e-3)),
        ("seconds", 60, ("s", 1)),
        ("share of tokens", 0.5, ("% of tokens", 0.01)),
        ("entries", 5, ("entries", 1)),
        ("", 5, ("", 1)),
    ],
)
def test_a_scale_is_the_largest_unit_of_which_there_is_one(unit: str, largest: float, found: tuple[str, float]) -> None:
    """A scale is the largest unit with a value of at least 1, or the only unit."""
    assert scale(unit, largest) == found


def test_a_ratio_has_its_interval() -> None:
    """A ratio has its confidence interval, or a dash if missing."""
    assert ratio(0.9124, (0.9, 1.02)) == "0.912 [0.900, 1.020]"
    assert ratio(None, None) == DASH
