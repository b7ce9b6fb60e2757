"""Laws that any KV-cache compressor must obey."""
