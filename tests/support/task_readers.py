"""Readers that solve each task from the text of its prompt alone, by regular expressions and counting."""

import re
from collections import Counter
from collections.abc import Callable


def _needle(prompt: str) -> str:
    key = re.findall(r"The secret number of (\S+) is$", prompt)[0]
    return str(re.findall(rf"The secret number of {re.escape(key)} is (\d+)\.", prompt)[0])


def _passkey(prompt: str) -> str:
    return str(re.findall(r"The pass key is (\d+)\.", prompt)[0])


def _variables(prompt: str) -> str:
    value = re.findall(r"Which 5 variables have the value (\d+),", prompt)[0]
    known = {value}
    for name, source in re.findall(r"VAR (\w+) = (\w+)\.", prompt):
        known |= {name} if source in known else set()
    return " ".join(known - {value})


def _common(prompt: str) -> str:
    found = Counter(re.findall(r"\d+\. (\w+)(?=[ \n])", prompt))
    return " ".join(word for word, _ in found.most_common(10))


def _frequent(prompt: str) -> str:
    listed = prompt.splitlines()[1].split()
    return " ".join(word for word, _ in Counter(word for word in listed if word != "....").most_common(3))


def _recall(prompt: str) -> str:
    *before, asked = prompt.split()
    facts: dict[str, str] = dict(re.findall(r"remember (\w+) (\w+) \.", " ".join(before)))
    return facts[asked]


READERS: dict[str, Callable[[str], str]] = {
    "niah": _needle,
    "niah-multikey": _needle,
    "vt": _variables,
    "cwe": _common,
    "fwe": _frequent,
    "passkey": _passkey,
    "recall": _recall,
}
"""By task, the answer to a prompt."""
