"""The presses of the baselines: every press under every schedule, at several ratios."""

from collections.abc import Container, Iterator
from dataclasses import replace
from typing import get_args

from pressgauge import Press
from pressgauge.presses import PRESSES
from pressgauge.rules import Ledger, Schedule, pass_lengths

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
RATIOS = (0.9, 0.8, 0.7, 0.5, 0.3, 0.1)
FEW_RATIOS = (0.9, 0.5, 0.1)
DEFAULT = 512
"""Default of ``prune_after``."""


def presses(tokens: int, prompt: int, kinds: Container[str]) -> Iterator[tuple[str, Press, int]]:
    """Presses of these classes with every schedule, ratio and P of 64 and the default, by name, with prompt lengths.

    Under ``budget``, presses whose scores change score all entries anew for nearly every token, so they have P = 64 and
    half of the ratios. With ``prefill`` the prompt has ``prompt`` tokens, otherwise one. Of cases that always hold
    equally many entries, only the first is included, and none without evictions.
    """
    for name, kind in PRESSES.items():
        if name not in kinds:
            continue
        for schedule in SCHEDULES:
            length = prompt if schedule == "prefill" else 1
            known = [sizes(kind(keep_ratio=1), tokens, length)]
            for prune_after in (64, DEFAULT) if kind.fixed_scores else (64,):
                for ratio in RATIOS if kind.fixed_scores or schedule != "budget" else FEW_RATIOS:
                    press = kind(keep_ratio=ratio, schedule=schedule)
                    # The default is not passed, so that a changed default is detected.
                    press = press if prune_after == DEFAULT else replace(press, prune_after=prune_after)
                    held = sizes(press, tokens, length)
                    if held not in known:
                        known.append(held)
                        yield f"{name} {schedule} r={ratio} P={prune_after}", press, length


def sizes(press: Press, tokens: int, prompt: int) -> list[int]:
    """Number of entries held after each pass."""
    ledger = Ledger(press, prompt)
    held = []
    for count in pass_lengths(tokens, prompt):
        ledger.feed(count, [0])
        held += ledger.held
    return held
