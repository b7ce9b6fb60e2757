"""Sweeps over models, texts and presses, keyed by everything that determines a result."""

import gc
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pressgauge.arguments import check_context, strange_id
from pressgauge.attach import meet
from pressgauge.bench.cells import UNCOMPRESSED, Cell, Share
from pressgauge.bench.compressors import Compressor, Failed, sources_of
from pressgauge.bench.journal import Journal, digest
from pressgauge.bench.merging import Failure, Report, Sweep, Text, merged, text_row
from pressgauge.bench.metrics import check_names
from pressgauge.bench.observed import Changed, observe
from pressgauge.bench.parts import Part, Result, joined_parts, part_key
from pressgauge.bench.plan import Plan, device_name, timed_presses
from pressgauge.bench.provenance import versions
from pressgauge.bench.row import QUANTITIES, Row, Settings, Source, measured
from pressgauge.bench.task_row import TaskSource
from pressgauge.bench.task_sweep import measure_tasks
from pressgauge.likelihood import perplexity
from pressgauge.models import load, load_parts, placed
from pressgauge.models.heads import split_of
from pressgauge.models.support import of_config
from pressgauge.norm_attention import norm_attention
from pressgauge.presses.base import Press
from pressgauge.rules import check_prompt
from pressgauge.tasks.fitting import Prompts
from pressgauge.texts import load_text
from pressgauge.texts.loading import unknown_share
from pressgauge.timing import PAIRS, measure_timing
from pressgauge.uncompressed import MOST_HELD, Perplexity, Uncompressed


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
            for press in timed_presses(presses) if plan.timing else ():
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
        for press in timed_presses(presses):
            check_prompt(press, plan.prompt, plan.tokens)
    return samples


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 digest of a model's configuration and weights."""
    config = model.config.to_json_string(use_diff=False)
    settings = json.loads(config)
    # How processes share a model is no part of it.
    if settings.pop("distributed_config", None) is not None:
        config = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    state = hashlib.sha256(config.encode())
    for name, weight in placed.weights(model):
        state.update(name.encode())
        state.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


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
    share = {index: range(plan.samples) for index in range(len(plan.cells))}
    return merged(plan, [measure(plan, share, samples, journal, prompts or {}, pictures, advance, resume)])


def measure(
    plan: Plan,
    share: Share,
    samples: dict[tuple[str, str], Tensor],
    journal: Journal | None,
    prompts: Mapping[str, Mapping[str, Prompts]],
    pictures: bool,
    advance: Callable[[str, int], None],
    resume: Callable[[int], None],
    report: Report | None = None,
) -> Report:
    """Measure a share of a plan; arguments are those of ``run_sweep``.

    Args:
        share: samples by the index of their cell in ``plan.cells``.
        report: what the results are added to.
    """
    report = report or Report()
    cells = plan.cells
    for name in plan.models:
        mine = {index: share[index] for index in sorted(share) if cells[index].model == name}
        if report.stopped or not mine:
            continue
        advance(f"loading {name}", 0)
        given: dict[str, Any] = {"device_map": plan.device_map} if plan.device_map else {}
        given |= {"tensor_parallel": plan.tensor_parallel} if plan.tensor_parallel > 1 else {}
        model, tokenizer = load(
            name, device=plan.device, dtype=plan.dtype, trust_remote_code=plan.trust_remote_code, **given
        )
        resolved = {name: _resolved(presses, model) for name, presses in plan.presses.items()}
        for line, presses in enumerate(resolved.values()):
            report.settings[name, False, line] = Settings.of(presses[0])
        weights = fingerprint(model) if journal is not None else ""
        parameters = sum(weight.numel() for weight in model.parameters())
        for text in plan.texts:
            here = {index: those for index, those in mine.items() if cells[index].text == text}
            if report.stopped or not here:
                continue
            ids = samples[name, text].to(plan.device)
            source = Source(
                name,
                text,
                plan.dtype,
                placed.where(model, plan.device),
                ids.shape[0],
                ids.shape[1],
                plan.prompt,
                digest(ids.tolist()),
                weights,
                parameters,
            )
            if journal is not None:
                journal.check(source)
            vocabulary = model.config.get_text_config(decoder=True).vocab_size
            place = cells[next(iter(here))].place
            report.texts[place] = Text(vocabulary, unknown_share(ids, tokenizer))
            at = _Measurement(replace(plan, presses=resolved), journal, model, ids, source, report, advance, resume)
            at.all(here, cells)
            if pictures and any(cells[index].press == UNCOMPRESSED and 0 in those for index, those in here.items()):
                at.pictures(place)
            del at
        if prompts and not report.stopped:
            measure_tasks(
                plan.of_tasks,
                {index: (cells[index], those) for index, those in mine.items() if cells[index].task},
                prompts[name],
                model,
                tokenizer,
                TaskSource(name, plan.dtype, placed.where(model, plan.device), weights, parameters),
                device_name(plan.device),
                journal,
                report,
                advance=lambda what, rows: advance(what, rows * plan.steps_per_row),
                resume=lambda rows: resume(rows * plan.steps_per_row),
            )
        # Free the memory for the next model.
        del model
        if name != plan.models[-1]:
            gc.collect()
    return report


def _resolved(
    presses: tuple[Press, ...] | tuple[Compressor, ...], model: PreTrainedModel
) -> tuple[Press, ...] | tuple[Compressor, ...]:
    """Presses or compressors with the layers of a model that they skip."""
    others = tuple(press.resolved(model) for press in presses if isinstance(press, Compressor))
    return others or tuple(meet(press, model)[0] for press in timed_presses(presses))


@dataclass(frozen=True)
class _Measurement:
    """Shared context of the measurements of one text under one model."""

    plan: Plan
    journal: Journal | None
    model: PreTrainedModel
    ids: Tensor
    source: Source
    report: Report
    advance: Callable[[str, int], None]
    resume: Callable[[int], None]

    @cached_property
    def uncompressed(self) -> tuple[Uncompressed, ...]:
        """The runs that the presses are compared with, one of each sample; their row may be in the journal.

        Samples are measured one by one, so that results do not depend on who measures which.
        """
        most = MOST_HELD // len(self.ids)
        return tuple(Uncompressed(self.model, row, self.plan.prompt, most_bytes=most) for row in self.ids.split(1))

    def run(self, sample: int) -> Perplexity:
        """The uncompressed run on a sample."""
        against = self.uncompressed[sample]
        return against.result or perplexity(self.model, against.input_ids, None, self.plan.prompt, against=against)

    @cached_property
    def singly(self) -> dict[int, Tensor]:
        """NLL of the uncompressed runs that were decoded stepwise, as third-party compressors are."""
        return {}

    def decoded(self, sample: int) -> Tensor:
        """NLL ``[1, scored]`` of the uncompressed run on a sample, decoded stepwise."""
        if sample not in self.singly:
            ids = self.uncompressed[sample].input_ids
            self.singly[sample] = perplexity(self.model, ids, None, self.plan.prompt, method="stepwise").nll
        return self.singly[sample]

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

    def _check_finite(self, press: Press | Compressor | None, result: Result) -> None:
        """Raise ``ValueError`` if an uncompressed perplexity is NaN or infinite."""
        if press is not None or not isinstance(result, Perplexity) or math.isfinite(result.ppl):
            return
        scores = result.nll[result.scored]
        kind = "not a number" if math.isnan(result.ppl) else "infinite"
        wider = {"float32": "float64", "float64": None}.get(self.source.dtype, "float32")
        way_out = "check the weights and the text" if wider is None else f"give --dtype {wider}, or check the weights"
        raise ValueError(
            f"the uncompressed perplexity of {self.source.model} on {self.source.text} in {self.source.dtype} is "
            f"{kind} ({int((~scores.isfinite()).sum())} of {len(scores)} scored tokens have an NLL that is not "
            f"finite), so no press can be compared with it: {way_out}"
        )

    def all(self, share: Share, cells: Sequence[Cell]) -> None:
        """Measure samples of cells of this text, by the index of the cell."""
        base: Row | None = None
        for index, samples in share.items():
            cell = cells[index]
            press = self._press(cell)
            self.advance(str(cell), 0)
            key = self.key(press) if self.journal is not None else ""
            row = self.journal.find(key) if self.journal is not None else None
            if row is not None:
                self.resume(self.plan.steps_per_row)
                self.advance(str(cell), self.plan.steps_per_row)
                if 0 in samples:
                    self.report.rows[index] = row
            else:
                try:
                    if len(samples) < len(self.ids):
                        self._samples(index, cell, press, samples, key)
                        self.advance(str(cell), 1)
                        continue
                    if press is not None and base is None:
                        base = self._base()
                    row = self._row(cell, press, base, key)
                except Failed as error:
                    self.report.failures[index] = Failure(str(error), isinstance(error, Changed), samples.start)
                    if isinstance(error, Changed):
                        self.report.stopped = True
                        return
                    continue
                self.report.rows[index] = row
            if press is None:
                base = row

    def pictures(self, place: str) -> None:
        """Collect the data of the figures of this text."""
        for label, presses in self.plan.presses.items():
            if len(presses) > 1 and (pressed := timed_presses(presses)):
                self.advance(f"{place}: figures", 0)
                tightest = min(pressed, key=lambda press: press.keep_ratio)
                title = f"{place}: {label}, keep ratio {tightest.keep_ratio:g}"
                self.report.maps[title] = perplexity(self.model, self.ids[:1], tightest, self.plan.prompt).evicted_at
        correlations = norm_attention(self.model, self.ids[:1])
        if split := split_of(self.model.config):
            (correlations,) = split.joined((correlations,))
        self.report.correlations[place] = correlations

    def _press(self, cell: Cell) -> Press | Compressor | None:
        """The press of a cell; None for the uncompressed one."""
        if cell.press == UNCOMPRESSED:
            return None
        presses = list(self.plan.presses.values())[cell.line]
        return next(press for press in presses[1:] if press.keep_ratio == cell.ratio)

    def _parts(self, press: Press | Compressor | None, name: str, samples: Sequence[int]) -> list[Part]:
        """Measure samples, one by one, of a press or of no press."""
        settings = Settings.of(press or next(iter(self.plan.presses.values()))[0])
        if isinstance(press, Compressor):
            runs = [self.uncompressed[sample] for sample in samples]
            decoded = [self.decoded(sample) for sample in samples]
            found = observe(press, self.model, runs, samples)
            return [
                Part(name, settings, self.source, sample, one, self.run(sample), own)
                for sample, one, own in zip(samples, found, decoded, strict=True)
            ]
        parts = []
        for sample in samples:
            against = self.uncompressed[sample]
            result = (
                self.run(sample)
                if press is None
                else perplexity(self.model, against.input_ids, press, self.plan.prompt, against=against)
            )
            parts.append(Part(name, settings, self.source, sample, result, against.result or result))
        return parts

    def _samples(
        self, index: int, cell: Cell, press: Press | Compressor | None, samples: Sequence[int], key: str
    ) -> None:
        """Measure samples of a cell, except those in the journal."""
        for sample in samples:
            part = self._known(key, sample)
            if part is None:
                (part,) = self._parts(press, cell.press, [sample])
                self._check_finite(press, part.result)
                if self.journal is not None:
                    self.journal.add(part_key(key, sample), part)
            self.report.parts.setdefault(index, {})[sample] = part

    def _known(self, key: str, sample: int) -> Part | None:
        return self.journal.find_part(part_key(key, sample)) if self.journal is not None else None

    def _base(self) -> Row:
        """The uncompressed row for comparisons, of which the cell is another rank's."""
        known = self.journal.find(self.key(None)) if self.journal is not None else None
        return known or self._made(None, self._parts(None, UNCOMPRESSED, range(len(self.ids))), None)

    def _made(self, press: Press | Compressor | None, parts: Sequence[Part], base: Row | None) -> Row:
        """The row of parts of all samples."""
        result = joined_parts(parts)[0]
        self._check_finite(press, result)
        return text_row(self.plan, parts, base)

    def _row(self, cell: Cell, press: Press | Compressor | None, base: Row | None, key: str) -> Row:
        """Measure a whole cell, except for samples in the journal."""
        known = {sample: part for sample in range(len(self.ids)) if (part := self._known(key, sample)) is not None}
        new = self._parts(press, cell.press, [sample for sample in range(len(self.ids)) if sample not in known])
        parts = known | {part.sample: part for part in new}
        self.advance(str(cell), 1)
        timing = None
        if isinstance(press, Compressor):
            self.advance(str(cell), 2 * (PAIRS + 1) if self.plan.timing else 0)
        elif self.plan.timing:
            prompt, tokens = self.plan.timed(press)
            ids = self.ids[:1, :prompt]
            timing = measure_timing(self.model, ids, press, tokens, advance=lambda: self.advance(str(cell), 1))
        row = self._made(press, [parts[sample] for sample in sorted(parts)], base)
        row = row if timing is None else replace(row, **measured(timing))
        if self.journal is not None:
            self.journal.add(key, row)
        return row
