"""Functions that measure memory, their declarations, and readings of them on the scripted device."""

import copy
import functools
import gc
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pressgauge.conformance.outcomes import Departure
from pressgauge.measuring.counters import Read
from pressgauge.measuring.known import word_tokenizer
from pressgauge.measuring.meter import Meter, Run
from pressgauge.measuring.subjects import Measurement, read_declares
from pressgauge.measuring.views import Views
from pressgauge.presses import KnormPress

UNITS = {"B": 1, "kB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
"""Bytes of each unit."""
FIGURES = ("peak", "kv_cache", "saved", "ratio")
"""Figures of a mapping."""
CHOICES: dict[str, tuple[object, ...]] = {
    "figure": ("peak", "cache", "saved", "ratio"),
    "unit": tuple(UNITS),
    "above": ("nothing", "weights"),
    "metadata": ("counted", "excluded"),
    "ratio": ("factor", "held", "saved"),
    "compressor": ("inside", "argument"),
    "prompt": ("string", "ids"),
    "device": ("cuda", "cpu"),
}
"""Allowed values of declarations."""


@dataclass(frozen=True)
class Declares:
    """Declarations of a function that measures memory.

    Attributes:
        figure: what a plain number is: ``peak``, the most bytes allocated in the run; ``cache``, the bytes of the cache
            at its end; ``saved`` or ``ratio``, against the uncompressed cache of the same tokens.
        unit: unit of bytes: ``B``, ``kB``, ``KiB``, ``MB``, ``MiB``, ``GB`` or ``GiB``; MB are 10**6 bytes.
        above: what a peak does not contain: ``nothing`` is left out, or ``weights``.
        metadata: ``counted`` if bytes of a cache contain whatever it holds, such as positions, scores and scales;
            ``excluded`` if they are those of keys and values.
        ratio: ``factor``, uncompressed to compressed; ``held``, compressed to uncompressed; or ``saved``, 1 less that.
        compressor: ``inside``, or ``argument`` if the function takes ``compressor``, a press.
        prompt: ``string``, or ``ids`` if the function takes token ids, ``[B, T]``.
        device: what the model's tensors say they are on, ``cuda`` or ``cpu``.
    """

    figure: str = "peak"
    unit: str = "B"
    above: str = "nothing"
    metadata: str = "counted"
    ratio: str = "factor"
    compressor: str = "inside"
    prompt: str = "string"
    device: str = "cuda"


@dataclass(frozen=True)
class Scenario:
    """What a function is asked to measure.

    Attributes:
        keep_ratio, skip_layers: options of the compressor.
        kv_heads: KV heads of the model, which has 4 query heads.
        dtype: dtype of the model.
        rows: prompts.
        new_tokens: tokens to generate.
        device: whether there is a device.
        views: whether the compressor that is handed in keeps evicted entries alive.
    """

    keep_ratio: float = 0.3
    skip_layers: tuple[int, ...] = ()
    kv_heads: int = 4
    dtype: torch.dtype = torch.bfloat16
    rows: int = 1
    new_tokens: int = 12
    device: bool = True
    views: bool = False


LAYERS, HEADS, DIMENSION, PROMPT, PRUNE_AFTER = 3, 4, 128, 41, 8


@functools.cache
def model_of(kv_heads: int, dtype: torch.dtype) -> Any:
    """A random Llama."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        head_dim=DIMENSION,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


@functools.cache
def tokenizer() -> Any:
    """A tokenizer of 63 words."""
    return word_tokenizer(["<pad>", *(f"w{number}" for number in range(1, 64))])


def prompts(rows: int) -> list[str]:
    """Different prompts of ``PROMPT`` tokens."""
    draw = random.Random(rows)
    return [" ".join(f"w{draw.randrange(1, 64)}" for _ in range(PROMPT)) for _ in range(rows)]


@dataclass(frozen=True, eq=False)
class Reading:
    """One call of a function, and what it did.

    Attributes:
        scenario: what it was asked to measure.
        figures: its figures by name, None where it gave none; in bytes, or ratios.
        printed: the smallest step of each figure that its digits show, in bytes or as a ratio.
        runs: passes, by the cache that they shared.
        reads: readings of counters.
        passes: number of passes.
        weights, buffers: bytes of the model.
        peak_before: the peak that the counter had before the call.
        left: bytes of caches alive after the call.
        changed: what the call changed in the model; empty if nothing.
    """

    scenario: Scenario
    figures: dict[str, float | None]
    printed: dict[str, float]
    runs: list[Run]
    reads: list[Read]
    passes: int
    weights: int
    buffers: int
    peak_before: int
    left: int
    changed: str

    def whole(self, tokens: float) -> float:
        """Bytes of the uncompressed cache of so many tokens of each row."""
        scenario = self.scenario
        return LAYERS * tokens * scenario.rows * 2 * scenario.kv_heads * DIMENSION * scenario.dtype.itemsize

    def evicts(self, run: Run) -> bool:
        """Whether a run's cache held less at its end than was fed."""
        return run.cached and sum(layer.numbers for layer in run.state) < self.whole(run.seen)

    @property
    def run(self) -> Run | None:
        """The last run of the arm that the scenario asks for; None without a pass."""
        asked = [run for run in self.runs if self.evicts(run) is (self.scenario.keep_ratio < 1)]
        cached = [run for run in self.runs if run.cached]
        return next(iter([*asked[::-1], *cached[::-1], *self.runs[::-1]]), None)


def step(value: float) -> float:
    """The value of the last digit with which a number is written."""
    exponent = Decimal(repr(value)).as_tuple().exponent
    return 10.0**exponent if isinstance(exponent, int) else math.nan


@dataclass(frozen=True, repr=False, eq=False)
class Footprint(Measurement):
    """A function that measures memory."""

    declares: Declares

    kind = "memory"

    @classmethod
    def declared(cls, given: Mapping[str, Any]) -> Declares:
        return read_declares(Declares, given, CHOICES)

    @functools.cached_property
    def readings(self) -> dict[Scenario, Reading]:
        """Readings by scenario, each on a device of its own."""
        return {}

    def reading(self, scenario: Scenario) -> Reading:
        """The reading of a scenario, taken once."""
        if scenario not in self.readings:
            self.readings[scenario] = self.measure(scenario, self.meter(scenario))
        return self.readings[scenario]

    def meter(self, scenario: Scenario) -> Meter:
        """A new device for the model of a scenario."""
        device = self.declares.device if scenario.device else "cpu"
        # What one call leaves behind in its model is another law's finding.
        return Meter(copy.deepcopy(model_of(scenario.kv_heads, scenario.dtype)), device)

    def measure(self, scenario: Scenario, meter: Meter) -> Reading:
        """Call the function once.

        Args:
            scenario: what to measure.
            meter: the device, with a model of the scenario.

        Raises:
            Departure: if the result is not of the convention.
        """
        texts = prompts(scenario.rows)
        prompt: Any = texts if scenario.rows > 1 else texts[0]
        if self.declares.prompt == "ids":
            prompt = tokenizer()(texts, return_tensors="pt")["input_ids"]
        options: dict[str, Any] = {
            "keep_ratio": scenario.keep_ratio,
            "prune_after": PRUNE_AFTER,
            "skip_layers": scenario.skip_layers,
        }
        if self.declares.compressor == "argument":
            options["compressor"] = Views(scenario.keep_ratio) if scenario.views else KnormPress(**options)
        self._clear(meter)
        before = _attachments(meter.model)
        with meter.measuring(self.function):
            result = self.function(meter.model, tokenizer(), prompt, scenario.new_tokens, **self.taken(options))
        figures = self._figures(result)
        del result
        self._clear(meter)
        after = _attachments(meter.model)
        changed = [name for name in before if before[name] != after[name]]
        scale = {name: 1 if name == "ratio" else UNITS[self.declares.unit] for name in figures}
        return Reading(
            scenario=scenario,
            figures={name: None if value is None else value * scale[name] for name, value in figures.items()},
            printed={name: step(value) * scale[name] for name, value in figures.items() if value is not None},
            runs=meter.runs,
            reads=meter.device.reads,
            passes=meter.device.passes,
            weights=meter.device.weights,
            buffers=meter.device.buffers,
            peak_before=meter.device.peak_before,
            left=meter.storages.live(),
            changed=", ".join(changed),
        )

    @staticmethod
    def _clear(meter: Meter) -> None:
        """Free caches in reference cycles."""
        if meter.storages.live():
            gc.collect()

    @functools.cached_property
    def arms(self) -> tuple[Reading, Reading]:
        """Readings of an uncompressed arm and then of a pressed one, in one process."""
        meter = self.meter(Scenario())
        return self.measure(Scenario(keep_ratio=1.0), meter), self.measure(Scenario(), meter)

    def _figures(self, result: Any) -> dict[str, float | None]:
        """Figures by name, as the function wrote them."""
        if isinstance(result, Mapping):
            found = {name: result[name] for name in FIGURES if name in result}
            if not found:
                raise Departure(f"the result has none of {', '.join(FIGURES)}: it has {', '.join(map(str, result))}")
        else:
            found = {"kv_cache" if self.declares.figure == "cache" else self.declares.figure: result}
        for name, value in found.items():
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                found[name] = value.item()
            elif value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                try:
                    found[name] = float(value)
                except (TypeError, ValueError):
                    raise Departure(f"the {name} must be a number, got {value!r}") from None
        return found


def _attachments(model: Any) -> dict[str, Any]:
    """What a compressor may leave attached to a model."""
    return {
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()),
        "forward": [name for name, module in model.named_modules() if "forward" in vars(module)],
        "attention": model.config._attn_implementation,
        "weights": float(sum(parameter.detach().double().sum() for parameter in model.parameters())),
        "training": model.training,
    }
