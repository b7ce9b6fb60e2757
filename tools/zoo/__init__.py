"""Every causal architecture of the installed transformers, tiny and random: a press is right on it, or refused."""
