"""The install lines of README and docs, run in empty environments."""
