"""When a press evicts and how many entries it retains. Integers only, no torch."""

from pressgauge.rules.budget import UNPRUNABLE, Budget, Schedule, check_prompt, usual_prompt
from pressgauge.rules.ledger import Balance, Ledger, pass_lengths
from pressgauge.rules.numbers import as_written, exact_ceil, exact_floor, whole_number, whole_numbers
from pressgauge.rules.window import Window

__all__ = [
    "UNPRUNABLE",
    "Balance",
    "Budget",
    "Ledger",
    "Schedule",
    "Window",
    "as_written",
    "check_prompt",
    "exact_ceil",
    "exact_floor",
    "pass_lengths",
    "usual_prompt",
    "whole_number",
    "whole_numbers",
]
