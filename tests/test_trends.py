"""Trends of perplexity on the reference models: claims about means over documents, tested with a stated error rate.

That NLL does not fall is a null hypothesis. Its test fails where paired tests reject it, corrected over the family by
Holm: if the law is true, in 1 % of all runs on new documents at most. That something is better is shown by rejecting
that it is not, at the same 1 %. Documents are fixed, and new ones in every run of the profile ``nightly``.

Figures in docstrings are means over 64 other documents of 1,024 tokens, in nats per token.
"""

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pressgauge import KnormPress, Perplexity, Press, StreamingLLMPress

PRESSES = (KnormPress, StreamingLLMPress)
PROMPTS = {"budget": 1, "step": 1, "prefill": 768}
"""Tokens of the prompt: with ``prefill`` it is what is compressed, with the others it would be let off."""

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
DOCUMENTS = 32 if NIGHTLY else 8

Measure = Callable[[str, Press | None, int], Perplexity]
Curve = Callable[[str, Press | None, str], NDArray[np.float64]]
