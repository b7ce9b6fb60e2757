"""The presses. ``PRESSES`` is the only list of them: by the name on the command line, where the class is defined."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pressgauge.presses.base import Press

PRESS_CLASSES = {
    "knorm": ("knorm", "KnormPress"),
    "streaming-llm": ("streaming_llm", "StreamingLLMPress"),
    "random": ("random", "RandomPress"),
    "keydiff": ("keydiff", "KeyDiffPress"),
    "h2o": ("h2o", "H2OPress"),
    "snapkv": ("snapkv", "SnapKVPress"),
    "tova": ("tova", "TOVAPress"),
}
"""By name, the module in this package and the class in it."""


class _Registry(Mapping[str, "type[Press]"]):
    """The classes by name, each imported when it is looked up: to know the names takes no torch."""

    def __getitem__(self, name: str) -> "type[Press]":
        module, kind = PRESS_CLASSES[name]
        found: type[Press] = getattr(import_module(f"{__name__}.{module}"), kind)
        return found

    def __contains__(self, name: object) -> bool:
        return name in PRESS_CLASSES

    def __iter__(self) -> Iterator[str]:
        return iter(PRESS_CLASSES)

    def __len__(self) -> int:
        return len(PRESS_CLASSES)


PRESSES: Mapping[str, "type[Press]"] = _Registry()
