"""Benchmarks under audit: functions that take times of generation."""

import copy
import functools
import inspect
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pressgauge.conformance.outcomes import Departure
from pressgauge.measuring.clock import SECOND, Device, Pass, Script, scripted
from pressgauge.measuring.subjects import Measurement, attributes_of, read_declares
from pressgauge.models import load
from pressgauge.presses.knorm import KnormPress

FIGURES = ("ttft", "tpot", "throughput", "latency")
RATIOS = (*(f"{figure}_ratio" for figure in FIGURES), "speedup")
"""Ratios of a pressed to an uncompressed run; ``speedup`` is the inverse, of the figure that is declared."""

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
UNITS = {**PER_SECOND, **{f"tokens/{unit}": 1 / scale for unit, scale in PER_SECOND.items()}}
"""What a second, or a token per second, is in each unit."""

NEW_TOKENS = 8
PRUNE_AFTER = 16
ATTACHING = SECOND // 5
"""Nanoseconds of attaching the compressor that is handed in."""


@dataclass(frozen=True)
class Declares:
    """What a benchmark does differently.

    Attributes:
        units: unit per figure, by default ``s`` and ``tokens/s``.
        prompt: ``text`` (a string), ``texts`` (a list of them, one per row) or ``ids`` (``[B, T]``).
        prompt_tokens: length of the prompt, BOS included.
        compressor: ``argument`` if it takes ours as ``compressor=``.
        first_token: ``decode`` if TTFT ends after the first decoding step.
        tpot: ``all`` if it is the time of the whole generation by all tokens.
        throughput: ``decode`` for later tokens by the time of decoding, ``prompt`` if prompt tokens are counted too.
        latency: ``decode`` if it begins after the first token.
        speedup: the figure of which a speedup is reported.
        statistic: ``minimum`` for the fastest of repeated runs.
        device: ``cpu`` if it only runs there, and so never waits for a device.
    """

    units: Mapping[str, str] = field(default_factory=dict)
    prompt: str = "text"
    prompt_tokens: int = 96
    compressor: str = "inside"
    first_token: str = "prefill"
    tpot: str = "later"
    throughput: str = "generated"
    latency: str = "generation"
    speedup: str = "latency"
    statistic: str = "median"
    device: str = "any"


CHOICES: dict[str, tuple[object, ...]] = {
    "prompt": ("text", "texts", "ids"),
    "compressor": ("inside", "argument"),
    "first_token": ("prefill", "decode"),
    "tpot": ("later", "all"),
    "throughput": ("generated", "decode", "prompt"),
    "latency": ("generation", "decode"),
    "speedup": FIGURES,
    "statistic": ("median", "minimum"),
    "device": ("any", "cpu"),
}


@dataclass(frozen=True)
class Ask:
    """What a benchmark is asked for.

    Attributes:
        keep_ratio: of the compressor.
        new_tokens: tokens to generate.
        ends_after: tokens generated when the end of sequence comes; None for more than anybody asks for.
        rows: rows of the batch.
        longer: tokens of the prompt beyond those declared.
    """

    keep_ratio: float = 0.5
    new_tokens: int = NEW_TOKENS
    ends_after: int | None = None
    rows: int = 1
    longer: int = 0

    @property
    def generated(self) -> int:
        """Tokens generated if the end of sequence is heeded."""
        return min(self.new_tokens, self.ends_after or self.new_tokens)


@dataclass(frozen=True)
class Call:
    """One call of a benchmark.

    Attributes:
        ask: what it was asked for.
        figures: what it reported, in seconds, tokens per second, or ratios.
        passes: what it made the model do.
        hasty: readings of a clock with passes still queued.
        changed: name of what it left changed in the model; empty if nothing.
        refusal: its message if it declined.
    """

    ask: Ask
    figures: Mapping[str, float]
    passes: tuple[Pass, ...]
    hasty: int
    changed: str = ""
    refusal: str = ""


@dataclass(frozen=True)
class Handed(KnormPress):
    """The compressor that is handed in. Attaching it takes its time on the clock."""

    def __call__(self, model: PreTrainedModel) -> Any:
        """A context in which the press is attached."""

        @contextmanager
        def attached() -> Iterator[None]:
            time.sleep(ATTACHING / SECOND)
            with super(Handed, self).__call__(model):
                yield

        return attached()


@dataclass(frozen=True, repr=False, eq=False)
class Benchmark(Measurement):
    """A function that takes times: ``f(model, tokenizer, prompt, new_tokens, *, keep_ratio, ...)`` to a mapping."""

    kind = "benchmark"

    @classmethod
    def declared(cls, given: Mapping[str, Any]) -> Declares:
        """Validated declarations.

        Raises:
            ValueError: for an unknown name, value or unit.
        """
        declares = read_declares(Declares, given, CHOICES)
        for figure, unit in declares.units.items():
            allowed = [name for name in UNITS if ("tokens" in name) == (figure == "throughput")]
            if figure not in FIGURES or unit not in allowed:
                raise ValueError(f"declares units has no {figure!r} in {unit!r}: known are {FIGURES} in {allowed}")
        return declares

    @property
    def batched(self) -> bool:
        """Whether the function can be asked for several rows."""
        return self.declares.prompt != "text" or bool(self.taken({"batch_size": 2}))

    @functools.cache  # noqa: B019  # subjects live as long as the process
    def calls(self, script: Script, *asks: Ask) -> tuple[Call, ...]:
        """Calls one after the other, in a process whose device follows a script.

        Raises:
            Departure: if a figure is not a number.
        """
        # What one call leaves behind in its model is another law's finding.
        script = replace(script, cpu=self.declares.device == "cpu")
        device, model = Device(script), copy.deepcopy(model_of_known_length())
        prompts = [self._prompt(ask) for ask in asks]
        own = getattr(inspect.unwrap(self.function), "__globals__", None)
        with torch.random.fork_rng(devices=[]), scripted(device, model, own):
            return tuple(self._call(device, model, ask, given) for ask, given in zip(asks, prompts, strict=True))

    def _call(self, device: Device, model: Any, ask: Ask, given: Any) -> Call:
        options = {
            "keep_ratio": ask.keep_ratio,
            "prune_after": PRUNE_AFTER,
            "skip_layers": (),
            "batch_size": ask.rows,
            "repeats": 3,
        }
        if self.declares.compressor == "argument":
            options["compressor"] = Handed(ask.keep_ratio, prune_after=PRUNE_AFTER)
        before, hasty, state, refusal = len(device.passes), device.hasty, state_of(model), ""
        reported: Any = {}
        try:
            reported = self.function(model, tokenizer(), given, ask.new_tokens, **self.taken(options))
        except (ValueError, NotImplementedError) as error:
            refusal = str(error)
            if not refusal:
                raise
        reported = attributes_of(reported)
        if not isinstance(reported, Mapping):
            raise Departure(f"it returned {type(reported).__name__}: return a mapping with any of {', '.join(FIGURES)}")
        known = {name: reported[name] for name in reported if name in (*FIGURES, *RATIOS)}
        figures = {name: self._number(name, value) for name, value in known.items() if value is not None}
        after = state_of(model)
        changed = next((name for name in state if after.get(name) != state[name]), "")
        return Call(ask, figures, tuple(device.passes[before:]), device.hasty - hasty, changed, refusal)

    def _number(self, name: str, value: Any) -> float:
        """A reported value in seconds, tokens per second, or as a ratio."""
        try:
            return float(value) / UNITS[self.unit(name)]
        except (TypeError, ValueError):
            raise Departure(f"reported {name} is {value!r}: report a number") from None

    def unit(self, name: str) -> str:
        """Unit of a figure; for ratios, one that changes nothing."""
        default = "tokens/s" if name == "throughput" else "s"
        return str(self.declares.units.get(name, default))

    def _prompt(self, ask: Ask) -> Any:
        tokens = self.declares.prompt_tokens + ask.longer
        texts = [prompt(tokens, ask.ends_after, row) for row in range(ask.rows)]
        if self.declares.prompt == "ids":
            return tokenizer()(texts, return_tensors="pt").input_ids
        return texts if self.declares.prompt == "texts" else texts[0]


def state_of(model: Any) -> dict[str, Any]:
    """What a benchmark might leave behind in a model, by name."""
    found: dict[str, Any] = {"generation_config": model.generation_config.to_dict(), "config": model.config.to_dict()}
    for name, module in model.named_modules():
        where = name or type(model).__name__
        found[f"hooks of {where}"] = [*module._forward_hooks, *module._forward_pre_hooks]
        found[f"forward of {where}"] = vars(module).get("forward")
        found[f"training of {where}"] = module.training
    return found


# A model that counts: after token i it generates token i + 1


END = 148
"""The end of sequence, the last word of the vocabulary; the first two tokens are no words."""
WIDTH = 152
"""Hidden size: the vocabulary, rounded up to whole attention heads."""


@functools.cache
def tokenizer() -> Any:
    """The tokenizer of the reference language, with an end of sequence."""
    found = load("reference")[1]
    found.eos_token = found.convert_ids_to_tokens(END)
    return found


def prompt(tokens: int, ends_after: int | None, row: int = 0) -> str:
    """A text of ``tokens`` tokens, BOS included.

    The model generates the end of sequence as token number ``ends_after``, by default as number 128.
    """
    last = END - (ends_after or 128)
    words = [*random.Random(row).choices(range(2, END), k=tokens - 2), last]
    return " ".join(tokenizer().convert_ids_to_tokens(words))


@functools.cache
def model_of_known_length() -> Any:
    """A Llama that generates a known number of tokens, whatever is evicted.

    Its layers run and cache their entries, and add nothing to the embeddings, which are unit vectors.
    """
    vocabulary = END + 1
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        model.get_input_embeddings().weight.copy_(torch.eye(vocabulary, WIDTH))
        model.get_output_embeddings().weight.copy_(_next().T)
    return model.eval()


def _next() -> Tensor:
    """``[WIDTH, V]``: 1 where a column's token follows a row's; words follow each other in a circle."""
    follows = torch.zeros(WIDTH, END + 1)
    for token in range(END + 1):
        follows[token, token + 1 if token < END else 2] = 1
    return follows
