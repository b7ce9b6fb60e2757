"""Laws that any KV-cache compressor must obey, and the oracle that decides what is right."""
