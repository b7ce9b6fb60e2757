"""Third-party compressors, run against the laws; ``python -m tools.peers`` writes ``docs/peers.md``."""
