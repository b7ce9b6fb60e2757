"""Mutants of measuring code: each has one bug, and the law that must kill it.

Their ids begin with those of docs/bug-catalogue.md, or with ``measure`` for bugs that it does not list.
"""

import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from harness.mutants.mutant import Breaks, Mutant
from pressgauge import Perplexity, Uncompressed, decoder, timing
from pressgauge import divergence as distance
from pressgauge.bench import merging, sweep
from pressgauge.bench.row import Row
from pressgauge.conformance.versions import using
from pressgauge.history import NEVER
from pressgauge.onepass import OnePass
from pressgauge.timing import Ratio
from properties import test_measuring as laws

# The package's attribute of this name is the function.
scoring: Any = importlib.import_module("pressgauge.likelihood")


def replacing(owner: object, name: str, careless: Callable[[Any], Any]) -> Breaks:
    """Patch an attribute: ``careless`` turns the correct one into the broken one."""
    return lambda patch: patch.setattr(owner, name, careless(vars(owner)[name]))


def reporting(change: Callable[..., dict[str, Any]]) -> Breaks:
    """Patch the fields of a ``Perplexity``: ``change`` gets all fields and returns the falsified ones."""
    return replacing(scoring, "Perplexity", lambda real: lambda **found: real(**(found | change(**found))))


# Measured quantity


def never_touches_the_cache(real: Any) -> Any:
    """The press is in the label, and the pass is a plain one."""

    def onepass(model: Any, ids: Tensor, mask: Tensor, press: Any, prompt: int, progress: bool, note: Any) -> Any:
        return scoring._plain(model, ids, mask, prompt, note)

    return onepass


def never_installed(patch: pytest.MonkeyPatch) -> None:
    """The factory returns a plain cache, and nothing is attached."""
    new_cache = scoring.new_cache
    patch.setattr(scoring, "attached", lambda press, model: decoder.attached(None, model))
    patch.setattr(scoring, "new_cache", lambda press, model, prompt: new_cache(None, model, prompt))


def sweep_without_press(real: Any) -> Any:
    """The sweep does not pass the press on, but writes its name."""
    return lambda model, ids, press, prompt, **given: real(model, ids, None, prompt, **given)


def only_what_was_affected(compressing: bool, scored: Tensor, affected: Tensor, **found: Any) -> dict[str, Any]:
    """The pressed arm scores nothing before the first eviction."""
    return {"scored": affected} if compressing else {}


def press_that_stays(real: Any) -> Any:
    """A press remains active for all later measurements."""
    known = []

    def stepwise(model: Any, ids: Tensor, mask: Tensor, press: Any, prompt: int, progress: bool, note: Any) -> Any:
        known.extend([press] if press is not None else [])
        return real(model, ids, mask, known[-1] if known else None, prompt, progress, note)

    return stepwise


# Perplexity


def no_shift(real: Any) -> Any:
    """A token is scored by the logits of its own pass."""

    def plain(model: Any, ids: Tensor, mask: Tensor, prompt: int, note: Any) -> Any:
        logits = model(ids, attention_mask=mask, position_ids=scoring.own_positions(mask), use_cache=False).logits
        return scoring._Scores(*scoring.score(logits[:, prompt:], ids[:, prompt:]))

    return plain


def no_shift_in_steps(real: Any) -> Any:
    """The same while decoding: each pass scores its own token."""

    def stepwise(model: Any, ids: Tensor, mask: Tensor, press: Any, prompt: int, progress: bool, note: Any) -> Any:
        cache = DynamicCache(config=model.config)
        model(ids[:, :prompt], **using(cache))
        scores = []
        for token in range(prompt, ids.shape[1]):
            fed = ids[:, token : token + 1]
            scores.append(scoring.score(model(fed, **using(cache)).logits, fed))
        return scoring._Scores(*(torch.cat(parts, dim=1) for parts in zip(*scores, strict=True)))

    return stepwise


def shifted_twice(real: Any) -> Any:
    """Labels are shifted for a model that shifts them itself."""

    def logits(self: OnePass, model: Any, ids: Tensor) -> Tensor:
        right: Tensor = real(self, model, ids)
        return torch.cat([right[:, :1], right[:, :-1]], dim=1)

    return logits


def prompt_is_scored(real: Any) -> Any:
    """The first tokens are scored instead of those after the prompt."""

    def plain(model: Any, ids: Tensor, mask: Tensor, prompt: int, note: Any) -> Any:
        logits = model(ids, attention_mask=mask, position_ids=scoring.own_positions(mask), use_cache=False).logits
        return scoring._Scores(*scoring.score(logits[:, :-prompt], ids[:, 1 : ids.shape[1] - prompt + 1]))

    return plain


def prompt_is_forgotten(real: Any) -> Any:
    """Tokens after the prompt are scored without it as context."""

    def plain(model: Any, ids: Tensor, mask: Tensor, prompt: int, note: Any) -> Any:
        logits = model(ids[:, prompt - 1 : -1], attention_mask=mask[:, prompt - 1 : -1], use_cache=False).logits
        return scoring._Scores(*scoring.score(logits, ids[:, prompt:]))

    return plain


def in_units_of(base: float) -> Callable[[Any], Any]:
    """The exponential is of logarithms to another base."""

    def careless(real: Any) -> Any:
        def score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            nll, hits = real(logits, targets)
            return nll / math.log(base), hits

        return score

    return careless


def own_text(real: Any) -> Any:
    """The model is scored on its own predictions."""
    return lambda logits, targets: real(logits, logits.argmax(dim=-1).to(targets.device))


def own_precision(real: Any) -> Any:
    """The loss is computed in the dtype of the logits."""

    def score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        nll = -logits.log_softmax(dim=-1).gather(2, targets[..., None])[..., 0]
        return nll.double(), logits.argmax(dim=-1) == targets

    return score


def mean_of_row_perplexities(real: Any) -> Any:
    """Every row's perplexity has the same weight."""
    return property(lambda self: float(self.nll.nanmean(dim=1).exp().nanmean()))


def without_nan(real: Any) -> Any:
    """NaN is left out of the mean."""
    return property(lambda self: float(self.nll.nanmean().exp()))


# Counts and labels


def among_the_best_three(real: Any) -> Any:
    """Top-3 predictions count as top-1."""

    def score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return real(logits, targets)[0], (logits.topk(3).indices == targets[..., None]).any(dim=-1)

    return score


def over_all_columns(real: Any) -> Any:
    """Padding counts as misses."""
    return property(lambda self: float(self.hits.double().mean()))


def one_query_early(real: Any) -> Any:
    """The token scored by the evicting pass counts as affected."""
    return lambda tables, scored, prompt: real(tables, scored, prompt + 1)


def batch_is_affected_as_one(real: Any) -> Any:
    """The first eviction in any row counts for all rows."""

    def affected(tables: tuple[Tensor, ...], scored: Tensor, prompt: int) -> Tensor:
        found: Tensor = real(tables, scored, prompt)
        return scored & found.any(dim=0)

    return affected


def padding_was_evicted(real: Any) -> Any:
    """Everything that is not held counts as evicted."""
    return lambda tables: sum(int((table < NEVER).sum()) for table in tables)


def vacuous_only_at_zero_evictions(real: Any) -> Any:
    """One eviction is enough, even if no token was scored after it."""
    return property(lambda self: self.compressing and not self.evictions)


def verdict_by_what_is_above(real: Any) -> Any:
    """Comparisons with NaN are false, so NaN gets the best verdict."""

    def verdict(self: Row) -> str:
        if self.keep_ratio == 1 or self.vacuous:
            return "uncompressed" if self.keep_ratio == 1 else "vacuous"
        return "above" if self.ppl_change > 0.3 else "within +30 %" if self.ppl_change >= 0.2 else "within +20 %"

    return property(verdict)


def band_of_the_estimate(real: Any) -> Any:
    """The verdict is that of the change, however wide its interval is."""
    return property(lambda self: 0 if self.ppl_change < 0.2 else 1 if self.ppl_change <= 0.3 else 2)


def first_base_line_for_all(real: Any) -> Any:
    """The first uncompressed perplexity is used for the whole sweep."""
    known = []

    def make_row(name: str, press: Any, source: Any, result: Perplexity, base: Any, times: Any = None) -> Row:
        known.extend([] if base is None else [base])
        row: Row = real(name, press, source, result, base and known[0], times)
        return row

    return make_row


def nominal_size(real: Any) -> Any:
    """The nominal ratio, applied to all layers."""

    def make_row(name: str, press: Any, source: Any, result: Perplexity, base: Any, times: Any = None) -> Row:
        row: Row = real(name, press, source, result, base, times)
        columns = result.nll.shape[1] + 1
        entries = round(press.keep_ratio * columns) if result.compressing else columns
        assert row.kv_bytes is not None
        nominal = row.kv_bytes * entries * len(row.held) // sum(row.held)
        return replace(row, held=(entries,) * len(row.held), kv_bytes=nominal)

    return make_row


# Distance from the uncompressed distribution


def reversed_divergence(real: Any) -> Any:
    """KL(compressed || uncompressed)."""
    return lambda logits, reference, top: (real(reference, logits, top)[0], real(logits, reference, top)[1])


def divergence_in_bits(real: Any) -> Any:
    """KL divergence with logarithms of base 2."""

    def divergence(logits: Tensor, reference: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        kl, agrees = real(logits, reference, top)
        return kl / math.log(2), agrees

    return divergence


def divergence_of_the_token_before(real: Any) -> Any:
    """The reference is one token late."""
    return lambda logits, reference, top: real(logits, reference.roll(1, dims=1), top.roll(1, dims=1))


def over_the_prompt_too(real: Any) -> Any:
    """Tokens of the prompt, at which nothing was evicted, count in the mean."""
    return property(lambda self: float(self.kl[self.scored].sum() / (self.scored_tokens + 2 * len(self.kl))))


def nan_is_no_divergence(real: Any) -> Any:
    """NaN is left out of the mean."""
    return property(lambda self: float(self.kl[self.scored].nanmean()))


def never_closed(real: Any) -> Any:
    """Each run is taken for the uncompressed one."""
    return lambda self, result: setattr(self, "result", result)


def rows_in_order(real: Any) -> Any:
    """The rows of a pass are taken for the first ones of the batch."""
    return lambda self, rows, columns, logits: real(self, list(range(len(rows))), columns, logits)


def of_probabilities_without_a_bound(real: Any) -> Any:
    """Rounding makes small divergences negative."""

    def kl(reference: Tensor, own: Tensor, most: Tensor, own_most: Tensor) -> Tensor:
        p, q = (one.to(torch.bfloat16).float().softmax(dim=-1) + 1e-4 for one in (reference, own))
        found: Tensor = (p * (p.log() - q.log())).sum(dim=-1).double() - 1e-7
        return found

    return kl


# Times and memory


def one_arm_after_the_other(real: Any) -> Any:
    """The baseline runs first and cold, then the pressed arm, warm."""

    def interleave(first: Any, second: Any, pairs: int) -> list[tuple[Any, Any]]:
        base = [second() for _ in range(pairs)]
        return [(first(), other) for other in base]

    return interleave


def no_warm_up(real: Any) -> Any:
    """The first pair counts."""
    return lambda first, second, pairs: real(first, second, pairs, warmup=0)


def no_turns(real: Any) -> Any:
    """The pressed arm always runs first."""

    def interleave(first: Any, second: Any, pairs: int) -> list[tuple[Any, Any]]:
        return [(first(), second()) for _ in range(1 + pairs)][1:]

    return interleave


def clock_started_early(real: Any) -> Any:
    """The clock starts before queued work is done."""
    calls = itertools.count()
    return lambda device: real(device) if next(calls) else None


def first_token_in_tpot(real: Any) -> Any:
    """The whole time is divided by all tokens."""

    def generation(tokens: Any, new: int, generated: int, cache: Any, ttft: float, tpot: float | None) -> Any:
        return real(tokens, new, generated, cache, ttft, (ttft + (tpot or 0) * (new - 1)) / new)

    return generation


def prompt_in_throughput(real: Any) -> Any:
    """Tokens of the prompt count as generated."""
    return property(lambda self: self.tokens.numel() / (self.ttft + (self.tpot or 0) * (self.new_tokens - 1)))


def ratio_of_medians(real: Any) -> Any:
    """The ratio of medians instead of the median of ratios."""

    def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
        first, second = zip(*pairs, strict=True)
        return Ratio(median(first) / median(second), real(pairs).interval)

    return ratio


def normal_interval(real: Any) -> Any:
    """The mean with 1.96 standard errors to both sides."""

    def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
        quotients = torch.tensor([one / other for one, other in pairs], dtype=torch.float64)
        reach = 1.96 * float(quotients.std()) / math.sqrt(len(pairs))
        return Ratio(float(quotients.median()), (float(quotients.mean()) - reach, float(quotients.mean()) + reach))

    return ratio


def peak_of_both_arms(real: Any) -> Any:
    """The peak is read and never reset."""

    def run(model: Any, ids: Tensor, press: Any, new_tokens: int) -> Any:
        result = decoder.generate(model, ids, press, new_tokens, eos_token_id=[])
        memory = torch.accelerator.max_memory_allocated(ids.device)
        return timing._Run(result.ttft, result.tpot or 0, result.tokens_per_second, memory, "device")

    return run


def mean_over_no_readings(real: Any) -> Any:
    """Only CUDA is read, and a mean is reported on any device."""

    def run(model: Any, ids: Tensor, press: Any, new_tokens: int) -> Any:
        found = real(model, ids, press, new_tokens)
        readings = [found.memory] if ids.device.type == "cuda" else []
        return replace(found, memory=fmean(readings) if readings else math.nan, memory_of="device")

    return run


REPORTS = "the reports that this project starts from"

MEASURING = [
    Mutant(
        "M1", "one forward pass without the cache", REPORTS,
        None, laws.test_a_press_is_measured_with_its_compressed_cache,
        breaks=replacing(scoring, "_onepass", never_touches_the_cache),
    ),
    Mutant(
        "M2-cache", "the factory returns the plain cache", "KVCache-Factory 485af3c, 7855979",
        None, laws.test_a_press_is_measured_with_its_compressed_cache,
        breaks=never_installed,
    ),
    Mutant(
        "M2-label", "the press is only in the name of the row", "KVCache-Factory 485af3c, 7855979",
        None, laws.test_a_row_with_the_name_of_a_press_was_measured_under_it,
        breaks=replacing(sweep, "perplexity", sweep_without_press),
    ),
    Mutant(
        "M3", "a threshold that was never exceeded makes perplexity 'unchanged'", f"cold-compress issue 39; {REPORTS}",
        None, laws.test_results_without_affected_tokens_are_vacuous,
        breaks=replacing(Perplexity, "vacuous", lambda real: property(lambda self: False)),
    ),
    Mutant(
        "M4", "no shift in one pass", REPORTS,
        None, laws.test_nll_is_exact_for_a_model_whose_distribution_is_known,
        breaks=replacing(scoring, "_plain", no_shift),
    ),
    Mutant(
        "M4-stepwise", "no shift while decoding", REPORTS,
        None, laws.test_nll_is_exact_for_a_model_whose_distribution_is_known,
        breaks=replacing(scoring, "_stepwise", no_shift_in_steps),
    ),
    Mutant(
        "M5", "mean of perplexities", "l2compress; transformers PR 34387",
        None, laws.test_ppl_does_not_depend_on_how_the_same_nll_are_partitioned,
        breaks=replacing(Perplexity, "ppl", mean_of_row_perplexities),
    ),
    Mutant(
        "M6-cold", "the baseline is timed cold and first", REPORTS,
        None, laws.test_a_cold_start_is_in_neither_arm,
        breaks=replacing(timing, "interleave", one_arm_after_the_other),
    ),
    Mutant(
        "M6-clock", "timing without synchronisation", "mlx-swift-lm PR 10",
        None, laws.test_times_contain_the_work_of_an_asynchronous_device,
        breaks=replacing(decoder, "_synchronise", lambda real: lambda device: None),
    ),
    Mutant(
        "M7-reset", "peak memory is not reset between arms", "nanochat issue 838",
        None, laws.test_peak_memory_is_that_of_the_pressed_arm_alone,
        breaks=replacing(timing, "_run", peak_of_both_arms),
    ),
    Mutant(
        "M7-nan", "a mean over no readings", REPORTS,
        None, laws.test_memory_without_counters_is_not_available,
        breaks=replacing(timing, "_run", mean_over_no_readings),
    ),
    Mutant(
        "M8", "the nominal ratio although a layer was skipped", "kvpress issue 146",
        None, laws.test_size_is_what_all_layers_hold_and_not_the_nominal_ratio,
        breaks=replacing(merging, "make_row", nominal_size),
    ),
    Mutant(
        "measure-fewer", "the pressed arm scores affected tokens only", "plausible",
        None, laws.test_every_arm_and_every_method_scores_the_same_tokens,
        breaks=reporting(only_what_was_affected),
    ),
    Mutant(
        "measure-stays", "a press remains active for the next baseline", "kvpress PR 244",
        None, laws.test_the_uncompressed_arm_does_not_depend_on_earlier_measurements,
        breaks=replacing(scoring, "_stepwise", press_that_stays),
    ),
    Mutant(
        "measure-shift-two", "labels are shifted twice", "plausible",
        None, laws.test_nll_is_exact_for_a_model_whose_distribution_is_known,
        breaks=replacing(OnePass, "logits", shifted_twice),
    ),
    Mutant(
        "measure-prompt-scored", "the first tokens are scored, not those after the prompt", "plausible",
        None, laws.test_nll_is_exact_for_a_model_whose_distribution_is_known,
        breaks=replacing(scoring, "_plain", prompt_is_scored),
    ),
    Mutant(
        "measure-bits", "the exponential of an NLL in bits", "plausible",
        None, laws.test_nll_is_exact_for_a_model_whose_distribution_is_known,
        breaks=replacing(scoring, "score", in_units_of(2)),
    ),
    Mutant(
        "measure-log10", "common logarithms", "plausible",
        None, laws.test_no_perplexity_is_below_the_exact_entropy_by_more_than_sampling_error,
        breaks=replacing(scoring, "score", in_units_of(10)),
    ),
    Mutant(
        "measure-own-text", "the model is scored on its own predictions", "plausible",
        None, laws.test_no_perplexity_is_below_the_exact_entropy_by_more_than_sampling_error,
        breaks=replacing(scoring, "score", own_text),
    ),
    Mutant(
        "measure-padding", "the attention mask is ignored", "KIVI issue 18",
        None, laws.test_nll_does_not_depend_on_the_batch,
        breaks=replacing(scoring, "checked_mask", lambda real: lambda ids, mask: torch.ones_like(ids)),
    ),
    Mutant(
        "measure-context", "the text after the prompt is scored without it", "plausible",
        None, laws.test_nll_does_not_depend_on_the_prompt_where_nothing_is_evicted,
        breaks=replacing(scoring, "_plain", prompt_is_forgotten),
    ),
    Mutant(
        "measure-nan", "NaN is left out of the mean", "plausible",
        None, laws.test_nan_is_not_left_out,
        breaks=replacing(Perplexity, "ppl", without_nan),
    ),
    Mutant(
        "measure-half", "the loss is computed in bfloat16", "plausible",
        None, laws.test_nll_of_a_model_in_half_precision_is_taken_in_float32_or_wider,
        breaks=replacing(scoring, "score", own_precision),
    ),
    Mutant(
        "measure-top-3", "top-3 predictions count as top-1", "plausible",
        None, laws.test_accuracy_is_the_top_1_share_of_scored_tokens,
        breaks=replacing(scoring, "score", among_the_best_three),
    ),
    Mutant(
        "measure-columns", "accuracy includes padding", "plausible",
        None, laws.test_accuracy_is_the_top_1_share_of_scored_tokens,
        breaks=replacing(Perplexity, "accuracy", over_all_columns),
    ),
    Mutant(
        "measure-kl-reversed", "the divergence is that from the compressed distribution", "plausible",
        None, laws.test_distances_are_those_of_the_distributions_of_two_decodings,
        breaks=replacing(distance, "divergence", reversed_divergence),
    ),
    Mutant(
        "measure-kl-bits", "the divergence is in bits", "plausible",
        None, laws.test_distances_are_those_of_the_distributions_of_two_decodings,
        breaks=replacing(distance, "divergence", divergence_in_bits),
    ),
    Mutant(
        "measure-kl-shift", "distributions of different tokens are compared", "plausible",
        None, laws.test_distances_are_those_of_the_distributions_of_two_decodings,
        breaks=replacing(distance, "divergence", divergence_of_the_token_before),
    ),
    Mutant(
        "measure-kl-prompt", "the divergence is a mean over the prompt, too", "plausible",
        None, laws.test_distances_are_those_of_the_distributions_of_two_decodings,
        breaks=replacing(Perplexity, "kl_divergence", over_the_prompt_too),
    ),
    Mutant(
        "measure-kl-own", "a run is compared with itself", "plausible",
        None, laws.test_distances_are_those_of_the_distributions_of_two_decodings,
        breaks=replacing(Uncompressed, "close", never_closed),
    ),
    Mutant(
        "measure-kl-rows", "rows of a padded batch are mixed up", "plausible",
        None, laws.test_a_padded_row_has_the_distances_that_it_has_alone,
        breaks=replacing(distance.Comparison, "note", rows_in_order),
    ),
    Mutant(
        "measure-kl-nan", "NaN is left out of the mean divergence", "plausible",
        None, laws.test_no_divergence_is_negative_or_loses_a_nan,
        breaks=replacing(Perplexity, "kl_divergence", nan_is_no_divergence),
    ),
    Mutant(
        "measure-kl-negative", "rounding makes divergences negative", "plausible",
        None, laws.test_a_ratio_of_one_is_at_no_distance,
        breaks=replacing(distance, "_kl", of_probabilities_without_a_bound),
    ),
    Mutant(
        "measure-agreement-text", "agreement is that with the text", "plausible",
        None, laws.test_distances_are_those_of_the_distributions_of_two_decodings,
        breaks=reporting(lambda hits, **found: {"agrees": hits}),
    ),
    Mutant(
        "measure-affected", "one token too many is affected", "plausible",
        None, laws.test_tokens_are_affected_after_the_first_eviction,
        breaks=replacing(scoring, "_affected", one_query_early),
    ),
    Mutant(
        "measure-affected-rows", "the first eviction counts for all rows", "plausible",
        None, laws.test_tokens_are_affected_after_the_first_eviction,
        breaks=replacing(scoring, "_affected", batch_is_affected_as_one),
    ),
    Mutant(
        "measure-evictions", "padding counts as evicted", "plausible",
        None, laws.test_evictions_count_entries_of_all_layers_heads_and_rows,
        breaks=replacing(scoring, "count_evictions", padding_was_evicted),
    ),
    Mutant(
        "measure-vacuous", "an eviction without later tokens is enough", "plausible",
        None, laws.test_results_without_affected_tokens_are_vacuous,
        breaks=replacing(Perplexity, "vacuous", vacuous_only_at_zero_evictions),
    ),
    Mutant(
        "measure-uncompressed", "a ratio of one is called vacuous", "plausible",
        None, laws.test_a_ratio_of_one_is_called_uncompressed,
        breaks=replacing(Perplexity, "vacuous", lambda real: property(lambda self: not self.affected_tokens)),
    ),
    Mutant(
        "measure-base-line", "one baseline for all models", "plausible",
        None, laws.test_a_change_is_relative_to_the_uncompressed_run_of_the_same_model_and_text,
        breaks=replacing(merging, "make_row", first_base_line_for_all),
    ),
    Mutant(
        "measure-verdict-point", "a verdict ignores the interval of its change", "the reports: 3 samples decided",
        None, laws.test_a_verdict_needs_its_interval_in_one_band,
        breaks=replacing(Row, "band", band_of_the_estimate),
    ),
    Mutant(
        "measure-verdict", "a NaN perplexity is in the first band", "plausible",
        None, laws.test_verdicts_are_the_bands_below_20_percent_up_to_30_and_above,
        breaks=replacing(Row, "verdict", verdict_by_what_is_above),
    ),
    Mutant(
        "measure-warm-up", "the first pair counts", "plausible",
        None, laws.test_a_cold_start_is_in_neither_arm,
        breaks=replacing(timing, "interleave", no_warm_up),
    ),
    Mutant(
        "measure-turns", "the pressed arm always runs first", "plausible",
        None, laws.test_a_device_that_gets_slower_favours_neither_arm,
        breaks=replacing(timing, "interleave", no_turns),
    ),
    Mutant(
        "measure-clock-start", "the clock starts before the device is idle", "plausible",
        None, laws.test_times_contain_the_work_of_an_asynchronous_device,
        breaks=replacing(decoder, "_synchronise", clock_started_early),
    ),
    Mutant(
        "measure-tpot", "the prompt is in TPOT", "plausible",
        None, laws.test_times_contain_the_work_of_an_asynchronous_device,
        breaks=replacing(decoder, "Generation", first_token_in_tpot),
    ),
    Mutant(
        "measure-throughput", "the prompt is in tokens per second", "plausible",
        None, laws.test_times_contain_the_work_of_an_asynchronous_device,
        breaks=replacing(decoder.Generation, "tokens_per_second", prompt_in_throughput),
    ),
    Mutant(
        "measure-pairs", "the ratio of medians", "plausible",
        None, laws.test_a_slow_pair_does_not_change_the_ratio,
        breaks=replacing(timing, "ratio", ratio_of_medians),
    ),
    Mutant(
        "measure-interval", "an interval around the mean", "plausible",
        None, laws.test_an_interval_contains_its_median_and_nothing_that_was_not_measured,
        breaks=replacing(timing, "ratio", normal_interval),
    ),
]  # fmt: skip
