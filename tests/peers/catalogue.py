"""Third-party compressors, by the name of their file of deviations."""

from harness.mutants.variants import DYNAMIC, WINDOW_SIZE, SlidingWindow
from peers import kvpress_presses
from peers.l2compress import l2compress
from peers.quantized import Quantized
from pressgauge.conformance.subjects import Subject, subject_of

NEITHER = {"prune_after": None, "skip_layers": None}

PEERS: dict[str, Subject] = {
    **kvpress_presses.SUBJECTS,
    "l2compress": subject_of("l2compress's rule", l2compress, {"score": "knorm", "ties": "any", "boundary": ">="}),
    "dynamic-cache": DYNAMIC,
    "sliding-window-cache": subject_of(
        f"DynamicSlidingWindowLayer({WINDOW_SIZE})",
        SlidingWindow,
        {**NEITHER, "score": "position", "target": lambda seen, held: min(held, WINDOW_SIZE - 1)},
    ),
    "quantized-cache": subject_of(
        "QuantizedCache(quanto, 4 bits)",
        Quantized,
        {**NEITHER, "entries": "altered", "target": lambda seen, held: held},
    ),
}
