"""Examination of one architecture: whether a press is correct on it, or refused for a true reason."""

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.utils import logging

from pressgauge import KnormPress, Press, PressedCache, TOVAPress, perplexity
from pressgauge.conformance.versions import using
from support.zoo import oracle, reasons, specimens

LENGTH, PROMPT = 36, 12
PATTERNS = ([PROMPT, *[1] * (LENGTH - PROMPT)], [4, 7, 1, 8, 1, 1, 14], [1] * LENGTH)
"""Passes of a text: a prompt, chunks, and single tokens."""
PADDED = (LENGTH, 29, 20)
"""Tokens of the rows of a padded batch."""
PRESS = KnormPress(0.5, prune_after=3)

RIGHT, BY_CACHE, REFUSED = "right", "right by cache", "refused"
WRONG, CRASH, FALSE, UNCHECKED, NOT_BUILT = "silently wrong", "crash", "false refusal", "unchecked", "not built"
BAD = (WRONG, CRASH, FALSE, UNCHECKED)


@dataclass(frozen=True)
class Verdict:
    """Result of an examination.

    Attributes:
        kind: one of the verdicts above.
        skipped: skipped layers.
        detail: message of a refusal, or the error and its size.
    """

    kind: str
    detail: str = ""
    skipped: tuple[int, ...] = ()


class Wrong(Exception):  # noqa: N818  # it is a finding
    """A wrong result without an error."""


class _Specimen:
    """A model and the results of the stock model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tolerance = 1e-5 if model.dtype == torch.float64 else 2e-3
        self.ids = specimens.tokens(1, LENGTH)
        self._plain: dict[tuple[int, ...], Tensor] = {}

    def close(self, what: str, found: Tensor, wanted: Tensor) -> None:
        """Raise ``Wrong`` unless both are equal up to rounding."""
        if found.shape != wanted.shape:
            raise Wrong(f"{what}: {list(found.shape)} where {list(wanted.shape)} is right")
        both = found.isnan() & wanted.isnan()
        off = float((found.double() - wanted.double()).abs().masked_fill(both, 0).max())
        if not off <= self.tolerance:
            raise Wrong(f"{what}: off by {off:.2g}")

    def stock(self, passes: Sequence[int]) -> Tensor:
        """Logits of the stock model in passes, with its own cache if it returns one."""
        try:
            return oracle.decode(self.model, self.ids, passes)[0]
        except oracle.Unreachable:
            return self.plain(passes)

    def plain(self, passes: Sequence[int]) -> Tensor:
        """Logits of the stock model in passes, with a ``DynamicCache``."""
        key = tuple(passes)
        if key not in self._plain:
            cache = DynamicCache(config=self.model.config)
            self._plain[key], _ = oracle.decode(self.model, self.ids, passes, cache)
        return self._plain[key]

    def baseline(self) -> None:
        """Without a press, every method gives the results of the stock model, or is refused."""
        model, ids = self.model, self.ids
        with torch.no_grad():
            self.close("plain, no press", perplexity(model, ids, None, PROMPT, "plain").nll,
                       oracle.nll(model(ids, use_cache=False).logits, ids, PROMPT))  # fmt: skip
        found = {}
        for method in ("stepwise", "onepass"):
            try:
                found[method] = perplexity(model, ids, None, PROMPT, method).nll
            except ValueError as refusal:
                _sentence(refusal)
        if found:
            wanted = oracle.nll(self.stock(PATTERNS[0]), ids, PROMPT)
        for method, nll in found.items():
            self.close(f"{method}, no press", nll, wanted)

    def attached(self, press: Press, passes: Sequence[int]) -> tuple[Tensor, PressedCache]:
        """Logits of passes with the press attached, and the cache."""
        cache: Any = DynamicCache(config=self.model.config)
        with torch.no_grad(), press(self.model):
            logits = [self.model(part, **using(cache)).logits for part in self.ids.split(list(passes), dim=1)]
        return torch.cat(logits, dim=1), cache

    def cached(self, press: Press, passes: Sequence[int]) -> tuple[Tensor, PressedCache]:
        """Logits of passes with a plain cache, and the cache."""
        cache = press.cache(self.model.config)
        with torch.no_grad():
            logits = [self.model(part, **using(cache)).logits for part in self.ids.split(list(passes), dim=1)]
        return torch.cat(logits, dim=1), cache

    def identity(self, press: Press) -> None:
        """With a ratio of 1, results are bit-identical to the stock model with its own cache."""
        whole = replace(press, keep_ratio=1)
        for passes in PATTERNS:
            stock = self.plain(passes)
            logits, _ = self.attached(whole, passes)
            if not torch.equal(logits, stock):
                raise Wrong(f"keep_ratio 1 in passes {passes[:3]}...: off by {float((logits - stock).abs().max()):.2g}")

    def ways(self, press: Press) -> None:
        """Attached, plain cache, stepwise and one pass agree with each other and with the oracle."""
        sizes = _sizes(self.model)
        for passes in PATTERNS:
            logits, cache = self.attached(press, passes)
            for layer, held in enumerate(cache.held):
                if layer not in press.skipped and held != sizes[layer]:
                    raise Wrong(f"layer {layer} holds {held} entries where the schedule leaves {sizes[layer]}")
            self.close(f"attached in passes {passes[:3]}... and the oracle",
                       oracle.expected(self.model, self.ids, passes, cache.evicted_at), logits)  # fmt: skip
        self.cache(press)
        logits, cache = self.attached(press, PATTERNS[0])
        stepwise = perplexity(self.model, self.ids, press, PROMPT, "stepwise")
        self.close("stepwise and attached", stepwise.nll, oracle.nll(logits, self.ids, PROMPT))
        try:
            onepass = perplexity(self.model, self.ids, press, PROMPT)
        except ValueError as refusal:
            if "method='stepwise'" not in _sentence(refusal):
                raise
            return
        self.same(onepass, stepwise)

    def same(self, onepass: Any, stepwise: Any) -> None:
        """One pass and stepwise agree."""
        self.close("one pass and stepwise", onepass.nll, stepwise.nll)
        for name in ("held", "evictions", "affected_tokens"):
            if getattr(onepass, name) != getattr(stepwise, name):
                raise Wrong(f"{name}: {getattr(onepass, name)} in one pass, {getattr(stepwise, name)} stepwise")
        if not onepass.kv_bytes <= stepwise.kv_bytes <= 1.03 * onepass.kv_bytes:
            raise Wrong(f"kv_bytes: {onepass.kv_bytes:,} in one pass, {stepwise.kv_bytes:,} stepwise")
        for layer, (one, other) in enumerate(zip(onepass.evicted_at, stepwise.evicted_at, strict=True)):
            if not torch.equal(one, other):
                raise Wrong(f"evicted_at of layer {layer} differs between one pass and stepwise")

    def cache(self, press: Press) -> None:
        """The logits with a plain cache are those of the oracle; or the message of a refusal."""
        for passes in (PATTERNS[0], PATTERNS[2]):
            try:
                logits, cache = self.cached(press, passes)
            except ValueError as refusal:
                _sentence(refusal)
                return
            self.close("plain cache and the oracle",
                       oracle.expected(self.model, self.ids, passes, cache.evicted_at), logits)  # fmt: skip

    def implementations(self, press: Press) -> None:
        """``eager`` and ``sdpa`` agree."""
        found = []
        for name in ("sdpa", "eager"):
            if self.model.config._attn_implementation == name or _can(self.model, name):
                found.append(self.attached(press, PATTERNS[1])[0])
        if len(found) == 2:
            self.close("eager and sdpa", *found)

    def rows(self, press: Press) -> None:
        """Padded rows have the results of rows alone, by both methods; or the message of a refusal."""
        texts = [specimens.tokens(1, length, seed=row) for row, length in enumerate(PADDED)]
        ids = torch.cat([torch.nn.functional.pad(text, (LENGTH - text.shape[1], 0)) for text in texts])
        mask = torch.tensor([[int(column >= LENGTH - length) for column in range(LENGTH)] for length in PADDED])
        for one in (press, None):
            for prompt in (PROMPT, 1):
                for method in ("stepwise", "onepass"):
                    try:
                        batch = perplexity(self.model, ids, one, prompt, method, attention_mask=mask)
                    except ValueError as refusal:
                        _sentence(refusal)
                        continue
                    for row, text in enumerate(texts):
                        padding = LENGTH - PADDED[row]
                        if padding >= prompt and prompt > 1:
                            continue
                        alone = perplexity(self.model, text, one, max(prompt - padding, 1), method)
                        own = batch.nll[row : row + 1, -alone.nll.shape[1] :]
                        what = f"{method}, {'no ' * (one is None)}press, row {row} of a padded batch, prompt {prompt}"
                        self.close(what, own, alone.nll)

    def queries(self, press: Press) -> None:
        """A press that scores by attention gives the same result stepwise and in one pass."""
        tova = TOVAPress(0.5, prune_after=3, skip_layers=press.skipped)
        try:
            onepass = perplexity(self.model, self.ids, tova, PROMPT)
        except ValueError as refusal:
            _sentence(refusal)
            return
        self.same(onepass, perplexity(self.model, self.ids, tova, PROMPT, "stepwise"))

    def untouched(self) -> None:
        """With all layers skipped, results are those of the plain model; or the message of a refusal."""
        count = self.model.config.get_text_config(decoder=True).num_hidden_layers
        try:
            logits, _ = self.attached(replace(PRESS, skip_layers=tuple(range(count))), PATTERNS[0])
        except ValueError as refusal:
            _sentence(refusal)
            return
        self.close("all layers skipped", logits, self.plain(PATTERNS[0]))

    def alone(self) -> None:
        """The model without a press, as suggested by a refusal, and a plain cache are correct or refused."""
        methods = 0
        for method in ("stepwise", "plain"):
            try:
                perplexity(self.model, self.ids, None, PROMPT, method)
            except ValueError as refusal:
                _sentence(refusal)
            else:
                methods += 1
        if not methods:
            raise Wrong("neither stepwise nor plain works without a press")
        self.plain_cache()

    def by_cache(self) -> None:
        """Stepwise and a plain cache give the results of the oracle where no press can be attached."""
        press, sizes = PRESS, _sizes(self.model)
        for passes in PATTERNS:
            stock, _ = oracle.decode(self.model, self.ids, passes, DynamicCache(config=self.model.config))
            logits, _ = self.cached(replace(press, keep_ratio=1), passes)
            if not torch.equal(logits, stock):
                raise Wrong(f"keep_ratio 1 in passes {passes[:3]}...: off by {float((logits - stock).abs().max()):.2g}")
            logits, cache = self.cached(press, passes)
            if cache.held != sizes:
                raise Wrong(f"layers hold {cache.held} entries where the schedule leaves {sizes}")
            self.close(f"plain cache in passes {passes[:3]}... and the oracle",
                       oracle.expected(self.model, self.ids, passes, cache.evicted_at), logits)  # fmt: skip
        logits, cache = self.cached(press, PATTERNS[0])
        stepwise = perplexity(self.model, self.ids, press, PROMPT, "stepwise")
        self.close("stepwise and plain cache", stepwise.nll, oracle.nll(logits, self.ids, PROMPT))
        if not all(map(torch.equal, stepwise.evicted_at, cache.evicted_at)):
            raise Wrong("evicted_at differs between stepwise and a plain cache")
        rows = torch.cat([self.ids, specimens.tokens(1, LENGTH, seed=1)])
        batch = perplexity(self.model, rows, press, PROMPT, "stepwise")
        self.close("row of a batch and alone", batch.nll[:1], stepwise.nll)
        self.rows(press)
        self.queries(press)

    def plain_cache(self) -> None:
        """A plain cache is accepted where an attached press is refused."""
        press = replace(PRESS, skip_layers="unprunable")
        try:
            logits, cache = self.cached(press, PATTERNS[0])
        except ValueError as refusal:
            _sentence(refusal)
            return
        try:
            wanted = oracle.expected(self.model, self.ids, PATTERNS[0], cache.evicted_at)
        except oracle.Unreachable:
            # The remaining cause would be attention that depends on slots.
            change = oracle.depends_on_slots(self.model, self.ids, PROMPT)
            if change > self.tolerance:
                raise Wrong(f"plain cache: the order of entries changes logits by {change:.2g}") from None
        else:
            self.close("plain cache and the oracle", wanted, logits)


def _sizes(model: Any) -> list[int]:
    """Entries per layer that the press leaves of the text: half of what the next token would see."""
    text = model.config.get_text_config(decoder=True)
    types = getattr(text, "layer_types", None) or []
    found = []
    for layer, own in enumerate(DynamicCache(config=model.config).layers):
        if not hasattr(own, "get_seq_length"):
            # It reads the keys of another.
            found.append(0)
            continue
        seen = min(LENGTH, getattr(own, "sliding_window", LENGTH + 1) - 1)
        if layer < len(types) and types[layer] == "chunked_attention":
            seen = LENGTH % text.attention_chunk_size
        found.append(min(seen, max(3, -(-seen // 2))))
    return found


def _can(model: Any, name: str) -> bool:
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError, KeyError):
        return False
    return bool(model.config._attn_implementation == name)


def _sentence(refusal: ValueError) -> str:
    """Message of a refusal.

    Raises:
        ValueError: the error itself, if it is not from pressgauge.
    """
    frames = []
    trace = refusal.__traceback__
    while trace is not None:
        frames.append(str(trace.tb_frame.f_globals.get("__name__")))
        trace = trace.tb_next
    if frames[-1].partition(".")[0] != "pressgauge":
        raise refusal
    return str(refusal)


def _press_for(model: Any, ids: Tensor) -> tuple[Press | None, str]:
    """The press with the layers skipped that its refusals name, None if no layer is left; and the first refusal."""
    press: Press = PRESS
    first = ""
    for _ in range(3):
        try:
            with torch.no_grad(), press(model):
                model(ids[:, :PROMPT])
        except ValueError as refusal:
            sentence = _sentence(refusal)
            first = first or sentence
            offered = re.search(r"skip_layers=(\([\d, ]*\))", sentence)
            if offered is None:
                return None, sentence
            press = replace(press, skip_layers=ast.literal_eval(offered[1]))
        else:
            return press, first
    raise Wrong(f"what it offers to skip does not do: {first}")


def examine(model_type: str) -> Verdict:
    """Verdict on a press with a tiny model of an architecture."""
    with _quiet():
        return _examine(model_type)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without warnings of third-party models, and with one thread, which is fastest for small models."""
    verbosity, threads = logging.get_verbosity(), torch.get_num_threads()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        torch.set_num_threads(threads)


def _examine(model_type: str) -> Verdict:
    try:
        model = specimens.build(model_type)
    except specimens.NotBuilt as reason:
        return Verdict(NOT_BUILT, str(reason))
    specimen = _Specimen(model)
    try:
        oracle.decode(model, specimen.ids, PATTERNS[0])
    except oracle.Unreachable:
        pass
    except Exception as error:
        return Verdict(NOT_BUILT, f"the stock model does not decode: {' '.join(str(error).split())[:120]}")
    skipped: tuple[int, ...] = ()
    try:
        specimen.baseline()
        press, sentence = _press_for(model, specimen.ids)
        specimen.untouched()
        if sentence and (what := reasons.unfounded(model, specimen.ids, sentence)):
            return Verdict(FALSE, f"{what}: {sentence}")
        if press is None:
            try:
                specimen.alone()
            except Wrong as finding:
                return Verdict(FALSE, f"{finding}: {sentence}")
            if "press.cache(" not in sentence:
                return Verdict(REFUSED, sentence)
            specimen.by_cache()
            return Verdict(BY_CACHE, sentence)
        skipped = press.skipped
        specimen.identity(press)
        specimen.ways(press)
        specimen.rows(press)
        specimen.queries(press)
        specimen.implementations(press)
    except Wrong as finding:
        return Verdict(WRONG, str(finding), skipped)
    except oracle.Unreachable as reason:
        return Verdict(UNCHECKED, str(reason), skipped)
    except Exception as error:
        return Verdict(CRASH, " ".join(f"{type(error).__name__}: {error}".split())[:300], skipped)
    return Verdict(RIGHT, sentence, skipped)
