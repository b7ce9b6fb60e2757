"""Recall of an answer: the share of the hidden strings that it contains, whatever its wording."""

import re
import unicodedata

from pressgauge.tasks.sample import Hidden

_ALNUM = r"[^\W_]"
_JOINT = "[-_\N{HYPHEN}\N{NON-BREAKING HYPHEN}]"
"""Characters that join two parts to one word."""


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _pattern(spelling: str) -> re.Pattern[str]:
    before, after = rf"(?<!{_ALNUM})(?<!{_ALNUM}{_JOINT})", rf"(?!{_ALNUM})(?!{_JOINT}{_ALNUM})"
    if spelling[0].isdigit():
        # Neither the end of a decimal nor, with three digits, that of a number with commas between thousands.
        before += r"(?<!\d\.)" + (r"(?<!\d,)" if re.match(r"\d{3}(?!\d)", spelling) else "")
    if spelling[-1].isdigit():
        after += r"(?!\.\d)(?!,\d{3}(?!\d))"
    return re.compile(before + re.escape(spelling) + after)


def contains(answer: str, spelling: str) -> bool:
    """Whether a string is in an answer as a whole word or number, in any case: 12 is not in 123, 12.5 or 12,000."""
    return _pattern(_plain(spelling)).search(_plain(answer)) is not None


def recall(answer: str, hidden: Hidden) -> float:
    """Share of hidden strings that are in an answer, in one of their spellings: from 0 to 1."""
    return sum(any(contains(answer, one) for one in spellings) for spellings in hidden) / len(hidden)
