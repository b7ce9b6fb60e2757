"""Law about perplexity: on a reference model, paired over documents."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch

from pressgauge.conformance.outcomes import Departure, not_applicable
from pressgauge.conformance.session import run
from pressgauge.conformance.subjects import Subject
from pressgauge.texts import load_text

PROMPT, CHUNK, TOKENS = 256, 16, 384
DOCUMENTS = 8
RATIOS = (1.0, 0.9, 0.7, 0.5, 0.1)
THRESHOLD = 64


def test_nll_does_not_fall_as_fewer_entries_are_retained(subject: Subject, trained: tuple[Any, Any]) -> None:
    """The mean NLL does not fall along descending ratios: paired one-sided tests, Holm-corrected, with a family-wise
    error rate of 1 %."""
    if subject.declares.quantised and subject.declares.target:
        not_applicable("the subject follows a rule of its own, and another law is about its bits")
    # A law for subjects that declare trends; for others the means are reported.
    model, tokenizer = trained
    ids = load_text("reference", tokenizer, samples=DOCUMENTS, tokens=TOKENS)
    # Decoding in chunks shows evictions after each pass, in an eighth of the time of single tokens.
    passes = [PROMPT] + [CHUNK] * ((TOKENS - PROMPT) // CHUNK)
    nll = {}
    for keep_ratio in RATIOS:
        logits = run(subject, model, ids, passes, keep_ratio=keep_ratio, prune_after=THRESHOLD).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, PROMPT - 1 : -1].transpose(1, 2).double(), ids[:, PROMPT:], reduction="none"
        )
        nll[keep_ratio] = np.asarray(losses.mean(dim=1).tolist())
        if not np.isfinite(nll[keep_ratio]).all():
            raise Departure(f"the NLL is not finite with keep_ratio {keep_ratio}")
    if not subject.declares.trends:
        means = ", ".join(f"{values.mean():.3f}" for values in nll.values())
        not_applicable(
            f"trends are reported, and not declared to be a law: at keep_ratio {', '.join(map(str, RATIOS))} the mean "
            f"NLL is {means} nats ({DOCUMENTS} documents of {TOKENS} tokens, prompt {PROMPT}, reference model)"
        )
    steps = {
        f"from keep_ratio {one} to {other}": (nll[one], nll[other])
        for one, other in pairwise(RATIOS)
        if (nll[one] != nll[other]).any()  # equal values do not fall
    }
    try:
        from pressgauge.conformance.trends import judged
    except ModuleNotFoundError:
        not_applicable("its test needs scipy, which is not installed: install the extra pressgauge[bench]")
    fallen, _ = judged(steps)
    if fallen:
        raise Departure(f"perplexity falls as fewer entries are retained: {fallen[0]}")
