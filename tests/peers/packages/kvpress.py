"""kvpress's presses. They take the evicted share, ``1 - keep_ratio``, and neither a threshold nor layers to skip."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from kvpress import (
    CompressionRatioDecodingPress,
    DecodingPress,
    KeyDiffPress,
    KnormPress,
    RandomPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from torch import Tensor

from peers.packages.adapt import NEITHER, declared

TARGET_SIZE = 8
WINDOW = 4
"""Window of SnapKV. The default is 64, and texts that are not longer are refused."""

DECLARES: dict[str, Any] = {
    **NEITHER,
    "rounding": "floor",
    # topk does not specify an order of ties.
    "ties": "any",
    # kvpress's pipeline supplies them, since a cache's length is the number held.
    "positions": "caller",
}


def removed(keep_ratio: float) -> float:
    """Evicted share as a decimal: .43 for .57, not .43000000000000005."""
    return float(1 - Decimal(str(keep_ratio)))


def press(kind: Any, declares: dict[str, Any], **own: Any) -> Callable[..., Any]:
    """Factory of a press that acts on the prompt."""

    def factory(keep_ratio: float) -> Any:
        return kind(compression_ratio=removed(keep_ratio), **own)

    return declared(factory, {**DECLARES, **declares})  # type: ignore[no-any-return]


class OneTokenRefused(TOVAPress):  # type: ignore[misc]
    """TOVAPress that refuses prompts of one token, on which it raises a RuntimeError."""

    def score(self, module: Any, hidden_states: Any, keys: Tensor, *rest: Any) -> Tensor:
        if keys.shape[2] == 1:
            raise ValueError("TOVAPress raises a RuntimeError on a prompt of one token")
        return super().score(module, hidden_states, keys, *rest)  # type: ignore[no-any-return]


knorm = press(KnormPress, {"score": "knorm"})
streaming_llm = press(StreamingLLMPress, {"score": "position", "sinks": 4})
random = press(RandomPress, {}, seed=0)
keydiff = press(KeyDiffPress, {"score": "keydiff"})
snapkv = press(SnapKVPress, {"score": "snapkv", "recent": WINDOW}, window_size=WINDOW)
tova = press(OneTokenRefused, {"score": "tova", "recent": 1})


def decoding(keep_ratio: float) -> Any:
    """A press to ``TARGET_SIZE`` entries after every pass except the prompt's; with a ratio of 1, to a size never
    reached."""
    size = TARGET_SIZE if keep_ratio < 1 else 10**6
    return DecodingPress(base_press=KnormPress(), compression_interval=1, target_size=size)


def ratio_decoding(keep_ratio: float) -> Any:
    """A press to a share of all tokens seen after every pass except the prompt's."""
    return CompressionRatioDecodingPress(
        base_press=KnormPress(), target_compression_ratio=removed(keep_ratio), compression_interval=1
    )


DECODING = {**DECLARES, "schedule": "decoding", "score": "knorm"}
declared(decoding, {**DECODING, "target": lambda seen, held: min(held, TARGET_SIZE)})
declared(ratio_decoding, DECODING)
