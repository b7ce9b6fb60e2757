"""``watch``: passes and caches observed around any evaluation, with any compressor."""

from pressgauge.observation.seen import Seen, watch

__all__ = ["Seen", "watch"]
