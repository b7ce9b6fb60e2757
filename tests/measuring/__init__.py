"""Laws for code that measures."""
