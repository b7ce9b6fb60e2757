"""Sweeps over models, texts and presses, keyed by everything that determines a result."""

import gc
import hashlib
import math
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pressgauge.arguments import check_context, strange_id
from pressgauge.attach import meet
from pressgauge.bench.compressors import Compressor, Failed, sources_of
from pressgauge.bench.journal import Journal, digest
from pressgauge.bench.metrics import Metric, check_names
from pressgauge.bench.observed import Changed, Decoded, Observed, observe
from pressgauge.bench.provenance import versions
from pressgauge.bench.quantities import BANDS
from pressgauge.bench.row import QUANTITIES, Row, Source, make_row, origin
from pressgauge.bench.task_row import TaskRow, TaskSource
from pressgauge.bench.task_sweep import TaskPlan, run_tasks
from pressgauge.likelihood import perplexity
from pressgauge.models import load, load_parts
from pressgauge.models.support import of_config
from pressgauge.norm_attention import norm_attention
from pressgauge.presses.base import Press
from pressgauge.rules import check_prompt
from pressgauge.tasks.fitting import Prompts
from pressgauge.texts import load_text
from pressgauge.texts.loading import MOST_UNKNOWN, unknown_share
from pressgauge.timing import PAIRS, measure_timing
from pressgauge.uncompressed import Perplexity, Uncompressed

MOST_NEW_TOKENS = 32
"""Maximum number of tokens generated for timing, which is a quarter of a sample's."""


@dataclass(frozen=True)
class Plan:
    """Configuration of a sweep.

    Attributes:
        presses: by name, one press or other compressor per ``keep_ratio``, the first with 1.
        models, texts: names, as in ``load`` and ``load_text``.
        samples, tokens: number of samples of each text, and tokens per sample.
        prompt: tokens of the prompt.
        device, dtype: device and dtype of the models.
        timing: whether to measure times.
        trust_remote_code: whether to run code that comes with a model.
        bands: thresholds of verdicts, as relative changes in perplexity, ascending.
        metrics: the user's own metrics.
        of_tasks: tasks and the presses under which they are measured.
    """

    presses: dict[str, tuple[Press, ...] | tuple[Compressor, ...]]
    models: tuple[str, ...]
    texts: tuple[str, ...]
    samples: int
    tokens: int
    prompt: int
    device: torch.device
    dtype: str
    timing: bool = False
    trust_remote_code: bool = False
    bands: tuple[float, ...] = BANDS
    metrics: tuple[Metric, ...] = ()
    of_tasks: TaskPlan = field(default_factory=TaskPlan)

    def timed(self, press: Press | None) -> tuple[int, int]:
        """Prompt length and number of new tokens for timing a press."""
        new = max(2, min(MOST_NEW_TOKENS, self.tokens // 4))
        # With schedule "prefill", time the eviction after the same prompt as in the perplexity run.
        least = self.prompt if press is not None and press.schedule == "prefill" else 1
        return max(least, self.tokens - new), new

    @property
    def measurements(self) -> int:
        """Number of measured rows; the uncompressed one of a text or a task is shared by all presses."""
        of_text = 1 + sum(len(presses) - 1 for presses in self.presses.values())
        return len(self.models) * (len(self.texts) * of_text + self.of_tasks.steps)

    @property
    def steps_per_row(self) -> int:
        """Number of steps of each measured row, reported to ``advance``."""
        return 1 + (2 * (PAIRS + 1) if self.timing else 0)

    @property
    def steps(self) -> int:
        """Total number of steps reported to ``advance``."""
        return self.measurements * self.steps_per_row

    def as_dict(self) -> dict[str, Any]:
        """Everything that determines the results and is known before models are loaded, for a journal."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "bands"}
        return own | {
            "presses": {
                name: {
                    str(press.keep_ratio): press.asked() if isinstance(press, Compressor) else press for press in them
                }
                for name, them in self.presses.items()
            },
            "device": f"{self.device} ({device_name(self.device)})",
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def provenance(self) -> dict[str, str]:
        """Provenance of the results, for a report."""
        return {
            **versions(),
            "device": f"{self.device} ({device_name(self.device)}), {torch.get_num_threads()} threads",
            "dtype": self.dtype,
            "samples": f"{self.samples} of {self.tokens} tokens, of which {self.prompt} are fed in one pass"
            if self.texts
            else f"{self.samples} of each task, up to {self.tokens} tokens each",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            **({"metrics": ", ".join(metric.reference for metric in self.metrics)} if self.metrics else {}),
            # A resumed sweep has the results of a whole one.
            "command": shlex.join(["pressgauge", *(one for one in sys.argv[1:] if one != "--resume")]),
        }


@dataclass(frozen=True)
class Sweep:
    """Results of a sweep.

    Attributes:
        rows: one per model, text, press and ratio, in this order.
        maps: by title, ``evicted_at`` of each text's first sample, for the smallest ratio of each press.
        correlations: by model and text, correlations of key norm and attention, see ``pressgauge.norm_attention``.
        tasks: one row per model, task, press, schedule and ratio, in this order.
        missing: measurements that failed, a line each.
    """

    rows: tuple[Row, ...]
    maps: dict[str, tuple[Tensor, ...]]
    correlations: dict[str, Tensor]
    tasks: tuple[TaskRow, ...] = ()
    missing: tuple[str, ...] = ()


def prepare(plan: Plan) -> dict[tuple[str, str], Tensor]:
    """Validate a plan without loading weights, and load all samples.

    Returns:
        Token ids ``[samples, tokens]`` by model and text.

    Raises:
        ValueError: if models, texts, presses and lengths do not fit together.
    """
    samples = {}
    check_names(plan.metrics, QUANTITIES)
    for model in plan.models:
        config, tokenizer = load_parts(model, trust_remote_code=plan.trust_remote_code)
        check_context(config, plan.tokens, "--tokens")
        for presses in plan.presses.values():
            if isinstance(presses[0], Compressor):
                presses[0].check_dtype(plan.dtype)
            else:
                of_config(config).resolve(presses[0])
            for press in _timed(presses) if plan.timing else ():
                check_context(config, sum(plan.timed(press)), "--prompt and what --timing generates behind it")
        for text in plan.texts:
            ids = load_text(text, tokenizer, samples=plan.samples, tokens=plan.tokens)
            if strange := strange_id(ids, config):
                raise ValueError(
                    f"text {text!r} has the token id {strange[0]} by the tokenizer of {model!r}, which has embeddings "
                    f"of {strange[1]} tokens: give another text, or a model whose tokenizer fits its weights"
                )
            samples[model, text] = ids
    for presses in plan.presses.values():
        for press in _timed(presses):
            check_prompt(press, plan.prompt, plan.tokens)
    return samples


def _timed(presses: tuple[Press, ...] | tuple[Compressor, ...]) -> list[Press]:
    """Those whose times can be taken: not third-party compressors."""
    return [press for press in presses if isinstance(press, Press)]


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 digest of a model's configuration and weights."""
    state = hashlib.sha256(model.config.to_json_string(use_diff=False).encode())
    for name, weight in sorted(model.state_dict().items()):
        state.update(name.encode())
        state.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def device_name(device: torch.device) -> str:
    """Hardware name of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def run_sweep(
    plan: Plan,
    samples: dict[tuple[str, str], Tensor],
    journal: Journal | None = None,
    *,
    prompts: Mapping[str, Mapping[str, Prompts]] | None = None,
    pictures: bool = False,
    advance: Callable[[str, int], None] = lambda what, steps: None,
    resume: Callable[[int], None] = lambda steps: None,
) -> Sweep:
    """Run all measurements of a plan.

    Args:
        plan: the plan.
        samples: result of ``prepare``.
        journal: store of finished results, which are not measured again.
        prompts: result of ``prepare_tasks`` by model, if the plan has tasks.
        pictures: whether to collect the data of the report's figures as well.
        advance: called with a description of the current measurement, and the number of ``plan.steps`` done since the
            last call.
        resume: called with the number of steps whose results the journal has, before ``advance`` counts them.

    Raises:
        ValueError: if a press does not support a model, or an uncompressed perplexity is not finite.
    """
    rows: list[Row] = []
    maps: dict[str, tuple[Tensor, ...]] = {}
    correlations: dict[str, Tensor] = {}
    missing = _Missing()
    tasks: list[TaskRow] = []
    for name in plan.models:
        if missing.stopped:
            break
        advance(f"loading {name}", 0)
        model, tokenizer = load(name, device=plan.device, dtype=plan.dtype, trust_remote_code=plan.trust_remote_code)
        resolved = {name: _resolved(presses, model) for name, presses in plan.presses.items()}
        weights = fingerprint(model) if journal is not None else ""
        parameters = sum(weight.numel() for weight in model.parameters())
        for text in plan.texts:
            if missing.stopped:
                break
            ids = samples[name, text].to(plan.device)
            where = f"{name} on {text}"
            measure = _Measurement(
                replace(plan, presses=resolved),
                journal,
                model,
                ids,
                Source(
                    name,
                    text,
                    plan.dtype,
                    str(plan.device),
                    ids.shape[0],
                    ids.shape[1],
                    plan.prompt,
                    digest(ids.tolist()),
                    weights,
                    parameters,
                ),
                resume,
            )
            if journal is not None:
                journal.check(measure.source)
            base = measure.row("uncompressed", None, None, advance)
            warnings = _warnings(base, model, unknown_share(ids, tokenizer))
            for label, presses in resolved.items():
                found = [measure.renamed(base, label, presses[0])]
                found += [row for press in presses[1:] if (row := measure.tried(label, press, base, advance, missing))]
                rows += [replace(row, warnings=warnings, bands=plan.bands) for row in found]
                if pictures and len(presses) > 1 and (pressed := _timed(presses)):
                    advance(f"{where}: figures", 0)
                    tightest = min(pressed, key=lambda press: press.keep_ratio)
                    title = f"{where}: {label}, keep ratio {tightest.keep_ratio:g}"
                    maps[title] = perplexity(model, ids[:1], tightest, plan.prompt).evicted_at
            if pictures:
                correlations[where] = norm_attention(model, ids[:1])
            del measure
        if prompts is not None and not missing.stopped:
            shared = TaskSource(name, plan.dtype, str(plan.device), weights, parameters)
            hardware = device_name(plan.device)
            tasks += run_tasks(
                plan.of_tasks,
                prompts[name],
                model,
                tokenizer,
                shared,
                hardware,
                journal,
                advance=lambda what, rows: advance(what, rows * plan.steps_per_row),
                resume=lambda rows: resume(rows * plan.steps_per_row),
            )
        # Free the memory for the next model.
        del model
        gc.collect()
    return Sweep(tuple(rows), maps, correlations, tuple(tasks), tuple(missing.lines))


@dataclass
class _Missing:
    """Measurements that failed, and whether the last one stopped the sweep."""

    lines: list[str] = field(default_factory=list)
    stopped: bool = False


def _resolved(
    presses: tuple[Press, ...] | tuple[Compressor, ...], model: PreTrainedModel
) -> tuple[Press, ...] | tuple[Compressor, ...]:
    """Presses or compressors with the layers of a model that they skip."""
    others = tuple(press.resolved(model) for press in presses if isinstance(press, Compressor))
    return others or tuple(meet(press, model)[0] for press in _timed(presses))


def _warnings(uncompressed: Row, model: PreTrainedModel, unknown: float) -> tuple[str, ...]:
    """Reasons why measurements with a model on a text say nothing about a press.

    Args:
        uncompressed: the row without a press.
        model: the model.
        unknown: share of the text's tokens that are unknown to the tokenizer.
    """
    found = []
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if uncompressed.ppl > vocabulary:
        found.append(
            f"the uncompressed perplexity, {uncompressed.ppl:,.0f}, is worse than that of guessing among the "
            f"{vocabulary:,} tokens of the vocabulary: the model does not know such text, or its weights are wrong"
        )
    if unknown > MOST_UNKNOWN:
        found.append(f"{unknown:.0%} of the text's tokens are unknown to the model's tokenizer")
    return tuple(found)


@dataclass(frozen=True)
class _Measurement:
    """Shared context of the measurements of one text under one model."""

    plan: Plan
    journal: Journal | None
    model: PreTrainedModel
    ids: Tensor
    source: Source
    resume: Callable[[int], None]

    @cached_property
    def uncompressed(self) -> Uncompressed:
        """The run that the presses are compared with; its row may be in the journal."""
        return Uncompressed(self.model, self.ids, self.plan.prompt)

    @cached_property
    def decoded(self) -> Decoded:
        """The same run, decoded stepwise as third-party compressors are."""
        return Decoded.of(self.model, self.ids, self.plan.prompt)

    def key(self, press: Press | Compressor | None) -> str:
        """Journal key of a press's result, over everything that the result may depend on."""
        own: dict[str, Any] = {}
        if isinstance(press, Compressor):
            own = press.key()
        elif press is not None:
            kind = type(press)
            own = {"class": kind.__name__, **asdict(press)}
            if not kind.__module__.startswith("pressgauge."):
                own["sources"] = sources_of(kind.__module__)
        return digest(
            {
                "press": own,
                "source": asdict(self.source),
                "timing": self.plan.timing,
                "metrics": {metric.reference: metric.source for metric in self.plan.metrics},
                "device": device_name(self.plan.device),
                "threads": torch.get_num_threads(),
                "versions": versions(),
            }
        )

    @staticmethod
    def renamed(row: Row, name: str, press: Press | Compressor) -> Row:
        """The uncompressed row, relabelled as the row of a press with ``keep_ratio`` 1."""
        return replace(
            row,
            press=name,
            schedule=press.schedule,
            prune_after=press.prune_after,
            skip_layers=press.skipped,
            **origin(press),
        )

    def nothing_to_compare(self, result: Perplexity) -> ValueError:
        """The error for an uncompressed perplexity that is NaN or infinite."""
        scores = result.nll[result.scored]
        kind = "not a number" if math.isnan(result.ppl) else "infinite"
        wider = {"float32": "float64", "float64": None}.get(self.source.dtype, "float32")
        way_out = "check the weights and the text" if wider is None else f"give --dtype {wider}, or check the weights"
        return ValueError(
            f"the uncompressed perplexity of {self.source.model} on {self.source.text} in {self.source.dtype} is "
            f"{kind} ({int((~scores.isfinite()).sum())} of {len(scores)} scored tokens have an NLL that is not "
            f"finite), so no press can be compared with it: {way_out}"
        )

    def tried(
        self, name: str, press: Press | Compressor, base: Row, advance: Callable[[str, int], None], missing: _Missing
    ) -> Row | None:
        """``row``, or None if it is missing."""
        what = f"{self.source.model} on {self.source.text}: {self.named(name, press)}"
        if missing.stopped:
            missing.lines.append(f"{what} was not measured on a model that was changed")
            return None
        try:
            return self.row(name, press, base, advance)
        except Failed as error:
            missing.stopped = isinstance(error, Changed)
            missing.lines.append(f"{what} {error}")
            return None

    @staticmethod
    def named(name: str, press: Press | Compressor) -> str:
        """Name and ratio, if it has one."""
        return name if press.keep_ratio is None else f"{name} {press.keep_ratio:g}"

    def row(
        self, name: str, press: Press | Compressor | None, base: Row | None, advance: Callable[[str, int], None]
    ) -> Row:
        """Measure a press, or no press if None, unless the journal has the result."""
        what = f"{self.source.model} on {self.source.text}: {name if press is None else self.named(name, press)}"
        advance(what, 0)
        key = self.key(press) if self.journal is not None else ""
        known = self.journal.find(key) if self.journal is not None else None
        if known is not None:
            self.resume(self.plan.steps_per_row)
            advance(what, self.plan.steps_per_row)
            return known
        result: Perplexity | Observed
        if isinstance(press, Compressor):
            result = observe(press, self.model, self.ids, self.decoded, self.uncompressed)
        else:
            result = perplexity(self.model, self.ids, press, self.plan.prompt, against=self.uncompressed)
        if press is None and isinstance(result, Perplexity) and not math.isfinite(result.ppl):
            raise self.nothing_to_compare(result)
        advance(what, 1)
        timing = None
        if isinstance(press, Compressor):
            advance(what, 2 * (PAIRS + 1) if self.plan.timing else 0)
        elif self.plan.timing:
            prompt, new = self.plan.timed(press)
            timing = measure_timing(self.model, self.ids[:1, :prompt], press, new, advance=lambda: advance(what, 1))
        shown = press or next(iter(self.plan.presses.values()))[0]
        row = make_row(name, shown, self.source, result, base, timing)
        try:
            own = [metric.measure(result, self.uncompressed.result or result) for metric in self.plan.metrics]
        except ValueError as error:
            if isinstance(result, Observed):
                # Of which less is known than of a press.
                raise Failed(f"failed after it was decoded: {error}") from error
            raise
        row = replace(row, metrics=tuple(own))
        if self.journal is not None:
            self.journal.add(key, row)
        return row
