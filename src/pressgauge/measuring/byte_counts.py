"""Right figures of memory: arithmetic over the record of a reading."""

import math
from dataclasses import dataclass

from pressgauge.measuring.footprints import LAYERS, Footprint, Reading
from pressgauge.measuring.meter import Run
from pressgauge.measuring.storages import State

COARSEST = 0.02
"""Largest share of a figure by which rounding may change it."""


@dataclass(frozen=True)
class Count:
    """One figure of a reading.

    Args:
        subject: the function.
        reading: its reading, which has a run.
        name: ``peak``, ``kv_cache``, ``saved`` or ``ratio``.
    """

    subject: Footprint
    reading: Reading
    name: str

    @property
    def run(self) -> Run:
        """The run whose figure is reported."""
        run = self.reading.run
        assert run is not None
        return run

    @property
    def reported(self) -> float:
        """The figure, in bytes or as a ratio."""
        value = self.reading.figures[self.name]
        assert value is not None
        return value

    def total(self, state: State) -> float:
        """Bytes of a cache, with or without metadata as declared."""
        counted = self.subject.declares.metadata == "counted"
        return float(sum(layer.storage + counted * layer.other for layer in state))

    @property
    def held(self) -> float:
        """Bytes of the cache at the end of the run."""
        return self.total(self.run.state)

    @property
    def whole(self) -> float:
        """Bytes of the uncompressed cache of all tokens seen."""
        return self.reading.whole(self.run.seen)

    def compared(self, held: float, whole: float, ratio: str | None = None) -> float:
        """Saved bytes, or the ratio in a convention, by default the declared one."""
        if self.name == "saved":
            return whole - held
        share = held / whole if whole else math.nan
        convention = self.subject.declares.ratio if ratio is None else ratio
        return {"held": share, "saved": 1 - share, "factor": 1 / share if share else math.inf}[convention]

    @property
    def weights(self) -> int:
        """Bytes of the model."""
        return self.reading.weights + self.reading.buffers

    @property
    def above(self) -> int:
        """Bytes that a peak is declared not to contain."""
        return self.weights if self.subject.declares.above == "weights" else 0

    @property
    def right(self) -> float:
        """The right value."""
        if self.name == "peak":
            return float(self.run.peak - self.above)
        return self.held if self.name == "kv_cache" else self.compared(self.held, self.whole)

    @property
    def rounding(self) -> float:
        """Half of the figure's last digit, and a little more."""
        return 0.51 * self.reading.printed[self.name]

    def equals(self, value: float) -> bool:
        """Whether the figure is this value, rounded to its digits within 2 %."""
        return math.isfinite(value) and abs(self.reported - value) <= self.tolerance(value)

    def tolerance(self, value: float) -> float:
        """How far a figure of this value may be from it."""
        return max(min(self.rounding, COARSEST * abs(value)), 1e-9 * abs(value))

    @property
    def holds(self) -> bool:
        """Whether the figure is right. Whether buffers are weights is up to the function."""
        return self.equals(self.right) or (
            self.name == "peak" and self.above > 0 and self.equals(self.right + self.reading.buffers)
        )

    def written(self, value: float) -> str:
        """A value in words."""
        if self.name == "ratio":
            return f"{value:.4g}"
        return f"{value:,.0f} bytes" if abs(value) >= 1 or not value else f"{value:.4g} bytes"

    @property
    def truth(self) -> str:
        """The right value in words."""
        if self.name == "peak":
            above = " above the weights" if self.above else ""
            return f"the peak of this run was {self.written(self.right)}{above}"
        token = self.reading.whole(1) / LAYERS
        layers = ", ".join(f"{(layer.storage + layer.other) / token:.4g}" for layer in self.run.state)
        truth = f"the cache holds {self.held:,.0f} bytes, by layer those of {layers} of {self.run.seen} tokens"
        if self.name == "kv_cache":
            return truth
        return f"{truth}, the uncompressed one {self.whole:,.0f}: {self.written(self.right)}"
