"""Golden baselines: what was right when it was recorded, compared with what comes out now, per device."""
