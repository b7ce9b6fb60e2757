"""Checks of quantised caches on chosen entries: other rows and heads, padding, extremes, later tokens, queries."""

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pressgauge.conformance import quantised
from pressgauge.conformance.nearest import relative
from pressgauge.conformance.outcomes import Departure, note
from pressgauge.conformance.quantisation import expected_error, pair
from pressgauge.conformance.quantised import NAMES, after, arrived, block, entries, feed, length_of, read
from pressgauge.conformance.quantised_checks import check_half_steps
from pressgauge.conformance.scripted import scripted
from pressgauge.conformance.session import Trace, run
from pressgauge.conformance.severity import check_same_entries, root_mean_square
from pressgauge.conformance.strategies import HEADS, normal_entries
from pressgauge.conformance.subjects import Subject

LATER = 6
"""Number of single tokens after a prompt."""


def prompt_and_tokens(length: int) -> list[int]:
    """A prompt and a few single tokens."""
    return [length - LATER] + [1] * LATER


def compare(
    found: Trace, expected: Trace, picked: tuple[Any, Any], sentence: str, index_of: tuple[int, ...] = (0, 1)
) -> None:
    """Check that two traces read the same entries back.

    If their texts have different lengths, a block of tokens may be full in one of them only: tokens that are exact in
    one and quantised in the other are left out.

    Args:
        found, expected: the traces.
        picked: index of ``[B, K, T, D]`` that picks the entries in each.
        sentence: ``{name}`` and ``{layer}`` is what differs, to which the sizes are added.
        index_of: 0 for keys, 1 for values.

    Raises:
        Departure: if they differ by more than noise.
    """
    for layer, (one, two) in enumerate(zip(after(found), after(expected), strict=True)):
        for index in index_of:
            both = one.exact[index][picked[0]] == two.exact[index][picked[1]]
            if found.passes[-1].end == expected.passes[-1].end:
                both = torch.ones_like(both)
            check_same_entries(
                read(one, index)[picked[0]][both],
                read(two, index)[picked[1]][both],
                arrived(expected, layer, index)[picked[1]][both],
                sentence.format(name=NAMES[index], layer=layer),
            )


def check_rows(subject: Subject) -> None:
    """Check that rows of different loudness are read back as alone, and with a row taken out.

    Raises:
        Departure: if they are not.
    """
    length = length_of(subject)
    loudness = torch.tensor([1.0, 30.0, 0.03])[:, None, None, None]
    keys, values = (x * loudness for x in entries(length, rows=3))
    lengths = prompt_and_tokens(length)
    together = feed(subject, keys, values, lengths)
    for rows in ([0], [1], [2], [0, 2]):
        fewer = feed(subject, keys[rows], values[rows], lengths)
        which = f"row {rows[0]} alone" if len(rows) == 1 else "without row 1"
        what = f"{{name}} of layer {{layer}} in a batch of 3 rows are read back otherwise than {which},"
        compare(together, fewer, (rows, slice(None)), what)


def check_heads(subject: Subject) -> None:
    """Check that KV heads are read back the same beside a loud head.

    Raises:
        Departure: if they are not.
    """
    length = length_of(subject)
    keys, values = entries(length)
    louder = [x * torch.tensor([1.0, 40.0, 1.0])[:, None, None] for x in (keys, values)]
    lengths = prompt_and_tokens(length)
    one, two = (feed(subject, *each, lengths) for each in ((keys, values), (louder[0], louder[1])))
    others = (slice(None), [0, 2])
    what = "{name} of layer {layer} in KV heads 0 and 2 are read back otherwise when KV head 1 is 40 times louder,"
    compare(two, one, (others, others), what)
    # Keys and values have scales of their own.
    for index, changed in ((0, (keys, values * 40)), (1, (keys * 40, values))):
        name, other = NAMES[index], NAMES[1 - index]
        what = f"{name} of layer {{layer}} are read back otherwise when the {other} are 40 times louder,"
        compare(feed(subject, *changed, lengths), one, (slice(None), slice(None)), what, (index,))


def check_scaled_head(subject: Subject) -> None:
    """Check that a head scaled by a power of two is read back as scaled by it.

    Raises:
        Departure: if it is not.
    """
    length = length_of(subject)
    keys, values = normal_entries(1, HEADS, length)
    lengths = prompt_and_tokens(length)
    one = after(feed(subject, keys, values, lengths))
    for exponent in (-6, 6):
        scale = torch.tensor([1.0, 2.0**exponent, 1.0])[:, None, None]
        other = after(feed(subject, keys * scale, values * scale, lengths))
        for layer, (first, second) in enumerate(zip(one, other, strict=True)):
            for index, (name, own) in enumerate(zip(NAMES, (keys, values), strict=True)):
                what = (
                    f"{name} of layer {layer}, KV head 1, times 2**{exponent} are read back otherwise than times that"
                )
                found = read(second, index)[:, 1] / 2.0**exponent
                check_same_entries(found, read(first, index)[:, 1], own[:, 1] * (-1) ** layer, what)


PADDING = (9, 0, 4)
"""Padding slots of each row."""


def check_padding(subject: Subject) -> None:
    """Check that rows after loud padding slots are read back as rows alone.

    Raises:
        Departure: if they are not.
    """
    length = length_of(subject)
    keys, values = entries(length, rows=3)
    mask = torch.ones((3, length), dtype=torch.long)
    for row, padding in enumerate(PADDING):
        mask[row, :padding] = 0
        keys[row, :, :padding] *= 30
        values[row, :, :padding] *= 30
    lengths = prompt_and_tokens(length)
    together = feed(subject, keys, values, lengths, mask)
    for row, padding in enumerate(PADDING):
        own = slice(row, row + 1), slice(None), slice(padding, None)
        alone = feed(subject, keys[own], values[own], prompt_and_tokens(length - padding))
        what = (
            f"{{name}} of layer {{layer}} of row {row}, with {padding} padding slots before them, are read back "
            "otherwise than without padding,"
        )
        compare(together, alone, (own, slice(None)), what)


def check_causal(subject: Subject) -> None:
    """Check that later, louder tokens change nothing of earlier ones but of those in their own group.

    Raises:
        Departure: if they do.
    """
    length = length_of(subject)
    keys, values = entries(length)
    lengths = [length // 2, *[1] * 3, 5, length - length // 2 - 8]
    for split in (length // 2, length // 2 + 2, length // 2 + 8):
        louder = [x.clone() for x in (keys, values)]
        for x in louder:
            x[:, :, split:] *= 20
        one, two = (feed(subject, *each, lengths) for each in ((keys, values), (louder[0], louder[1])))
        for index, name in enumerate(NAMES):
            size = block(subject, index)
            own = (slice(None), slice(None), slice(0, split // size * size))
            what = (
                f"{name} of layer {{layer}} of the first {own[2].stop} tokens are read back otherwise when tokens from "
                f"{split} on, which came in later passes, are 20 times louder,"
            )
            compare(two, one, (own, own), what, (index,))


EXTREMES = (
    "constant channels",
    "constant tokens",
    "zeros",
    "1e-4",
    "1e4",
    "1e5",
    "an outlier channel",
    "6e4 in float16",
    "later tokens 50 times louder",
    "NaN in one entry",
)
"""Kinds of entries, finite ones first."""


def extreme(kind: str, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values ``[1, HEADS, length, WIDE]`` of a kind."""
    pair_of: tuple[Tensor, Tensor] = normal_entries(1, HEADS, length, seed=3)
    found = []
    for x in pair_of:
        if kind == "constant channels":
            x = x[:, :, :1].expand_as(x).clone()
        elif kind == "constant tokens":
            x = x[..., :1].expand_as(x).clone()
        elif kind == "zeros":
            x = torch.zeros_like(x)
        elif kind in ("1e-4", "1e4", "1e5"):
            x = x * float(kind)
        elif kind == "an outlier channel":
            x[..., 5] *= 300
        elif kind == "6e4 in float16":
            x = (x / x.abs().amax() * 6.5e4).half()
        elif kind == "later tokens 50 times louder":
            x[:, :, length - 8 :] *= 50
        found.append(x)
    if kind == "NaN in one entry":
        found[0][:, 1, 5, 2] = torch.nan
    return found[0], found[1]


class NotFinite(Departure):
    """Something finite is read back as infinite or NaN."""


def check_extremes(subject: Subject) -> None:
    """Check what is read back of extreme entries.

    Raises:
        Departure: listing the kinds for which it is wrong; first those of which something finite is read back as
            infinite or NaN, and NaN in an entry last.
    """
    length = length_of(subject)
    findings: dict[str, Departure] = {}
    usual = _errors(feed(subject, *extreme("", length), [length - 10, 1, 1, 1, 7]), length)
    for kind in EXTREMES:
        keys, values = extreme(kind, length)
        try:
            trace = feed(subject, keys, values, [length - 10, 1, 1, 1, 7])
            _check_extreme(subject, trace, kind, usual)
        except Departure as finding:
            findings[kind] = finding
    if findings:
        first = sorted(findings, key=lambda kind: ("NaN" in kind, not isinstance(findings[kind], NotFinite)))
        raise Departure("; ".join(f"{kind}: {findings[kind]}" for kind in first))


def _errors(trace: Trace, length: int) -> list[float]:
    """Relative errors of keys and of values."""
    return [
        max(
            root_mean_square(relative(read(layer, index), arrived(trace, number, index)))
            for number, layer in enumerate(after(trace))
        )
        for index in (0, 1)
    ]


def _check_extreme(subject: Subject, trace: Trace, kind: str, usual: list[float]) -> None:
    declares = subject.declares
    for number, held in enumerate(trace.passes[-1].held):
        for index, name in enumerate(NAMES):
            what, found, own = f"{name} of layer {number}", held[index], arrived(trace, number, index)
            wrong = ~found.isfinite() & ~own.isnan().any(-1, keepdim=True)
            if wrong.any():
                row, head, token, channel = torch.nonzero(wrong)[0].tolist()
                raise NotFinite(
                    f"{what}: channel {channel} of token {token} (KV head {head}) is read back as "
                    f"{float(found[row, head, token, channel])}, and arrived as "
                    f"{float(own[row, head, token, channel]):.4g}"
                )
    for number, layer in enumerate(after(trace)):
        for index, name in enumerate(NAMES):
            what, found, own = f"{name} of layer {number}", read(layer, index), arrived(trace, number, index)
            bits, group, axis = (pair(each)[index] for each in (declares.bits, declares.group, declares.axis))
            if declares.error is None and bits is not None and axis:
                if kind == "NaN in one entry":
                    found, own = (x[:, [0, 2]] for x in (found, own))
                check_half_steps(found, own, (bits, group, axis), what)
            _check_relative(kind, found, own, usual[index], what)


def _check_relative(kind: str, found: Tensor, own: Tensor, usual: float, what: str) -> None:
    """Check errors beside the usual one: scales do not matter, louder tokens keep their direction."""
    if kind == "zeros":
        if found.any():
            raise Departure(f"{what} are zeros, and are read back as up to {float(found.abs().max()):.2g}")
        return
    if kind == "NaN in one entry":
        there = ~own.isnan().any(-1)
        error = root_mean_square(((found.double() - own.double()).norm(dim=-1) / own.double().norm(dim=-1))[there])
    else:
        error = root_mean_square(relative(found, own))
    if kind == "later tokens 50 times louder":
        cosine = torch.nn.functional.cosine_similarity(found.double(), own.double(), dim=-1)[:, :, -8:]
        quiet = found[:, :, -8:].double().norm(dim=-1) / own[:, :, -8:].double().norm(dim=-1)
        if float(cosine.min()) < 0.2 or float(quiet.max()) > 2:
            raise Departure(
                f"{what} of tokens 50 times louder than the first pass are read back with a cosine similarity of "
                f"{float(cosine.min()):.2g} and {float(quiet.max()):.2g} times their norm; values beyond a range "
                "saturate"
            )
        return
    if not error <= 1.5 * usual + 2e-3:
        raise Departure(
            f"{what} are read back with a relative error of {error:.2g} (root mean square), and normally distributed "
            f"ones of {usual:.2g}"
        )


GROUPS = 16
"""Number of slopes of the t-test."""
CRITICAL = 5.24
"""Two-sided critical value of Student's t with 15 degrees of freedom, for an error rate of 1e-4."""


def check_inner_products(subject: Subject) -> None:
    """Check that inner products with random queries are unbiased, if claimed, and that their variance is bounded.

    Each slope is that of read-back on true inner products, over a sixteenth of the tokens, or over all of them for one
    of 16 seeds if the factory takes ``seed``. Their mean is compared with 1 by Student's t-test, with an error rate of
    1e-4 for keys and for values. The variance is bounded by that of the allowed error.

    Raises:
        Departure: if they are not.
    """
    length = length_of(subject)
    keys, values = normal_entries(1, HEADS, length, seed=11)
    seeds = list(range(GROUPS)) if "seed" in inspect.signature(subject.factory).parameters else [None]
    slopes: list[list[float]] = [[], []]
    noise: list[list[Tensor]] = [[], []]
    generator = torch.Generator().manual_seed(12)
    for seed in seeds:
        model, ids = scripted(keys, values=values)
        options: dict[str, Any] = {} if seed is None else {"seed": seed}
        trace = run(subject, model, ids, [length], keep_ratio=1, **options)
        layers = after(trace)
        layer = layers[0]
        for index in (0, 1):
            old = quantised.settled(subject, index, layers)
            found, own = (x[:, :, :old].double() for x in (read(layer, index), arrived(trace, 0, index)))
            queries = torch.randn((64, *own.shape), generator=generator, dtype=torch.float64)
            true, kept = ((queries * x).sum(-1) for x in (own, found))
            noise[index].append((kept - true) / own.norm(dim=-1))
            parts = [slice(None)] if seed is not None else [slice(a, b) for a, b in pairwise(_bounds(old))]
            for part in parts:
                t, k = true[..., part], kept[..., part]
                slopes[index].append(float((t * k).sum() / t.square().sum()))
    for index, name in enumerate(NAMES):
        _check_slopes(subject, torch.tensor(slopes[index], dtype=torch.float64), name)
        spread, most = root_mean_square(torch.cat(noise[index])), expected_error(subject.declares)[index]
        if not spread <= 1.15 * most:
            raise Departure(
                f"inner products of random queries with {name} have a standard deviation of {spread:.2g} of the norms; "
                f"what is declared allows {most:.2g}"
            )


def _bounds(length: int) -> list[int]:
    return [round(length * part / GROUPS) for part in range(GROUPS + 1)]


def _check_slopes(subject: Subject, slopes: Tensor, name: str) -> None:
    mean = float(slopes.mean())
    error = float(slopes.std()) / len(slopes) ** 0.5
    if abs(mean - 1) <= CRITICAL * max(error, 1e-4):
        return
    sentence = (
        f"inner products of random queries with {name} as read back are {mean:.3f} of the true ones, with a standard "
        f"error of {error:.1g}"
    )
    if subject.declares.unbiased:
        raise Departure(f"{sentence}; they are declared as unbiased")
    note(sentence)
