"""Compressors that are broken on purpose, each with the law that must find it out."""
