"""Third-party compressors against the laws: ``docs/peers.md`` and ``docs/peers/``."""
