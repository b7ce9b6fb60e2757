"""The presses. ``PRESSES``, keyed by command-line name, is the only list of them."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pressgauge import lazy

if TYPE_CHECKING:
    from pressgauge.presses.base import Press as Press
    from pressgauge.presses.h2o import H2OPress as H2OPress
    from pressgauge.presses.keydiff import KeyDiffPress as KeyDiffPress
    from pressgauge.presses.knorm import KnormPress as KnormPress
    from pressgauge.presses.random import RandomPress as RandomPress
    from pressgauge.presses.snapkv import SnapKVPress as SnapKVPress
    from pressgauge.presses.streaming_llm import StreamingLLMPress as StreamingLLMPress
    from pressgauge.presses.tova import TOVAPress as TOVAPress

__all__ = [
    "PRESSES",
    "H2OPress",
    "KeyDiffPress",
    "KnormPress",
    "Press",
    "RandomPress",
    "SnapKVPress",
    "StreamingLLMPress",
    "TOVAPress",
]

_CLASSES = {
    "knorm": "KnormPress",
    "streaming-llm": "StreamingLLMPress",
    "random": "RandomPress",
    "keydiff": "KeyDiffPress",
    "h2o": "H2OPress",
    "snapkv": "SnapKVPress",
    "tova": "TOVAPress",
}
"""Class name by command-line name. The module has the command-line name, with underscores."""

PUBLIC = {"Press": "base"} | {kind: name.replace("-", "_") for name, kind in _CLASSES.items()}
"""Module by class name."""

__getattr__ = lazy.attributes(__name__, PUBLIC)


class _Registry(Mapping[str, "type[Press]"]):
    """Press classes by name, imported on lookup: listing the names does not import torch."""

    def __getitem__(self, name: str) -> "type[Press]":
        found: Any = __getattr__(_CLASSES[name])
        return found  # type: ignore[no-any-return]

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


PRESSES: Mapping[str, "type[Press]"] = _Registry()
