"""``evicted_at``, the whole history of a layer: its record, its replay without decoding, and what queries see by it."""

from pressgauge.history.record import NEVER, History, count_evictions, visible
from pressgauge.history.replaying import replay

__all__ = ["NEVER", "History", "count_evictions", "replay", "visible"]
