"""Other people's compressors, held to the laws: ``python -m peers`` writes what came out into ``docs/peers.md``."""
