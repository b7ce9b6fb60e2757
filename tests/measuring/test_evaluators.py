"""Laws for evaluators."""
