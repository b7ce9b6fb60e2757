"""``evicted_at``, the eviction history of a layer: recording, replay without decoding, masks."""

from pressgauge.history.record import NEVER, History, count_evictions, visible
from pressgauge.history.replaying import replay

__all__ = ["NEVER", "History", "count_evictions", "replay", "visible"]
