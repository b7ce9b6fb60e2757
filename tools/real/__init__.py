"""A real model as a part of the bench: Gemma 3 270M, which ``nox -s real`` fetches."""
