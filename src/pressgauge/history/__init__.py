"""``evicted_at``, the eviction history of a layer: its record, replay and masks."""

from pressgauge.history.record import (
    NEVER,
    History,
    count_evictions,
    effective,
    first_evictions,
    retained,
    visible,
)
from pressgauge.history.replaying import replay

__all__ = ["NEVER", "History", "count_evictions", "effective", "first_evictions", "replay", "retained", "visible"]
