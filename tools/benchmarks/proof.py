"""Cost of the proof at the end of every pass: decoding with it, relative to decoding without."""

from collections.abc import Iterator
from unittest.mock import patch

from pressgauge import KnormPress, attach, generate
from pressgauge.models import load
from pressgauge.timing import interleave, ratio
from tools.benchmarks.shapes import llama, tokens


def proof() -> Iterator[str]:
    """TPOT of an attached press on the tiny reference model and on a small Llama."""
    press = KnormPress(0.5, prune_after=64)
    for what, model, limit in (("reference", load("reference")[0], 1.01), ("Llama", llama(), 1.01)):
        ids = tokens(model, 128)

        def proven() -> float:
            return generate(model, ids, press, 256, eos_token_id=[]).tpot or 0.0  # noqa: B023  # called in the same round

        def unproven() -> float:
            with (
                patch.object(attach, "misfit", lambda *given: None),
                patch.object(attach, "strange_mask", lambda *given: None),
            ):
                return proven()  # called in the same round

        found = ratio(interleave(proven, unproven, pairs=41))
        yield f"TPOT, {what}, with the proof of every pass to without: {found} (at most {limit})"
