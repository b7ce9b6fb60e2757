"""Checks of what quantised caches read back: levels, errors, the residual, and that it never changes."""

import math

import torch
from torch import Tensor

from pressgauge.conformance import quantised
from pressgauge.conformance.outcomes import Departure, not_applicable, note
from pressgauge.conformance.quantisation import grouped, half_steps, pair, ungrouped, usual_error
from pressgauge.conformance.quantised import NAMES, after, arrived, fed, feedings, read, settled
from pressgauge.conformance.session import Trace
from pressgauge.conformance.severity import check_same_entries, root_mean_square
from pressgauge.conformance.subjects import Subject

TOO_GOOD = 0.5
"""Share of a uniform quantiser's error that no code of as many bits has: it is what one bit more gives."""
SMALL = 8
"""Numbers that share a scale, if it is not declared; larger groups have larger errors."""
LEAST_LEVELS = 0.6
"""Most levels, relative to the numbers of a group, from which bits are inferred."""


def check_levels(subject: Subject) -> None:
    """Check that entries have no more levels than their bits, and no smaller errors than these allow.

    Raises:
        Departure: if they do.
    """
    quantised.check_quantises(subject)
    declares = subject.declares
    for feeding in ("whole", "from a single token on"):
        trace = fed(subject, feeding)
        layers = after(trace)
        for number, layer in enumerate(layers):
            for index, name in enumerate(NAMES):
                bits, group, axis = (pair(each)[index] for each in (declares.bits, declares.group, declares.axis))
                old = settled(subject, index, layers)
                found, own = read(layer, index)[:, :, :old], arrived(trace, number, index)[:, :, :old]
                if not old:
                    raise Departure(f"{name} are exact for all {trace.passes[-1].end} tokens fed {feeding}")
                if bits is None:
                    note(f"{name}: {inferred(found)}, relative error {root_mean_square(_relative(found, own)):.2g}")
                    continue
                if axis:
                    _check_distinct(grouped(found, axis, group), bits, f"{name} of layer {number}, fed {feeding}", axis)
                error = root_mean_square(found.double() - own.double())
                ideal = _uniform_error(grouped(own, axis or "token", group or SMALL), bits)
                if error < TOO_GOOD * ideal:
                    raise Departure(
                        f"{name} of layer {number}, fed {feeding}, are declared as {bits:g} bits and read back with an "
                        f"error of {error:.2g} (root mean square), which is {error / ideal:.2g} of that of a uniform "
                        f"quantiser of {bits:g} bits: too good for what is declared"
                    )


def _relative(found: Tensor, own: Tensor) -> Tensor:
    errors, norms = (x.norm(dim=-1) for x in (found.double() - own.double(), own.double()))
    relative: Tensor = errors / norms.clamp(min=1e-30)
    return relative


def distinct(groups: Tensor) -> Tensor:
    """Number of distinct numbers of each group ``[..., numbers]``."""
    ordered = groups.sort(dim=-1).values
    return 1 + (ordered[..., 1:] != ordered[..., :-1]).sum(-1)


def _check_distinct(groups: Tensor, bits: float, what: str, axis: str) -> None:
    levels = int(distinct(groups).max())
    if levels > round(2**bits):
        raise Departure(
            f"{what} have {levels} distinct numbers in a group of {groups.shape[-1]} "
            f"{'channels of a token' if axis == 'token' else 'tokens of a channel'}; {bits:g} bits allow "
            f"{round(2**bits)}"
        )


def _uniform_error(groups: Tensor, bits: float) -> float:
    """Error (root mean square) of a uniform quantiser of the range of each group."""
    groups = groups.double()
    low = groups.amin(-1, keepdim=True)
    step = ((groups.amax(-1, keepdim=True) - low) / max(2**bits - 1, 1)).clamp(min=1e-30)
    return root_mean_square(((groups - low) / step).round() * step + low - groups)


def inferred(found: Tensor) -> str:
    """Bits and groups that the distinct numbers of entries ``[B, K, T, D]`` show, in words."""
    for axis, sizes in (("token", (32, 16, 8)), ("channel", (128, 64, 32, 16, 8))):
        for size in sizes:
            if size > found.shape[3 if axis == "token" else 2]:
                continue
            groups = grouped(found, axis, size)
            levels = int(distinct(groups).max())
            if levels <= LEAST_LEVELS * size:
                what = "channels of a token" if axis == "token" else "tokens of a channel"
                return f"{math.log2(levels):.2g} bits (at most {levels} distinct numbers in {size} {what})"
    return "bits are not declared, and cannot be inferred from distinct numbers"


def check_within_a_step(subject: Subject, feeding: str) -> None:
    """Check the error of entries against half a step of their groups, or against the declared error.

    Raises:
        Departure: if it is larger.
    """
    declares = subject.declares
    trace = fed(subject, feeding)
    layers = after(trace)
    for number, layer in enumerate(layers):
        for index, name in enumerate(NAMES):
            bits, group, axis = (pair(each)[index] for each in (declares.bits, declares.group, declares.axis))
            found, own = read(layer, index), arrived(trace, number, index)
            what = f"{name} of layer {number}, fed {feeding}"
            old = settled(subject, index, layers)
            if declares.error is not None:
                check_declared_error(found[:, :, :old], own[:, :, :old], declares.error, what)
            elif bits is not None and axis:
                check_half_steps(found, own, (bits, group, axis), what)
            else:
                most = 1.0 if bits is None else usual_error(bits)
                error = root_mean_square(_relative(found[:, :, :old], own[:, :, :old]))
                if not error <= most:
                    raise Departure(
                        f"{what} are read back with a relative error of {error:.2g} (root mean square); "
                        + (
                            f"{bits:g} bits allow {most:.2g}, unless another `error` is declared"
                            if bits
                            else "that of zero is 1"
                        )
                    )


def check_half_steps(found: Tensor, own: Tensor, known: tuple[float, int | None, str], what: str) -> None:
    """Check that each number is within half a step of its group.

    Args:
        found, own: as read back and as arrived, ``[B, K, T, D]``.
        known: bits, group and axis.
        what: the entries, for the finding.

    Raises:
        Departure: if one is not.
    """
    bits, group, axis = known
    limits = ungrouped(half_steps(grouped(own, axis, group), bits), axis)
    covered = limits.shape[2]
    error = (found[:, :, :covered].double() - own[:, :, :covered].double()).abs()
    # A number that is NaN has no error that could be compared.
    excess = torch.where(own[:, :, :covered].isnan() | limits.isnan(), 0, error / limits.clamp(min=1e-30))
    excess = torch.where(error == 0, 0, excess.nan_to_num(torch.inf))
    if float(excess.max()) > 1:
        row, head, token, channel = torch.nonzero(excess == excess.max())[0].tolist()
        raise Departure(
            f"{what}: channel {channel} of token {token} (row {row}, KV head {head}) is read back as "
            f"{float(found[row, head, token, channel]):.4g} instead of {float(own[row, head, token, channel]):.4g}, "
            f"off by {float(excess.max()) / 2:.2g} steps of {bits:g} bits over its own group of {group or 'all'} "
            "numbers; right is half a step"
        )


def check_declared_error(found: Tensor, own: Tensor, declared: float, what: str) -> None:
    """Check relative errors of entries against the declared one: 15 % more on average, 3 times as much in each.

    Raises:
        Departure: if they are larger.
    """
    errors = _relative(found, own)
    error, most = root_mean_square(errors), float(errors.nan_to_num(torch.inf).max()) if errors.numel() else 0.0
    if not (error <= 1.15 * declared and most <= 3 * declared):
        row, head, token = torch.nonzero(errors.nan_to_num(torch.inf) == most)[0].tolist()
        raise Departure(
            f"{what} are read back with a relative error of {error:.2g} (root mean square), and of {most:.2g} for "
            f"token {token} (row {row}, KV head {head}); {declared:.2g} is declared"
        )


def check_written_once(trace: Trace, feeding: str) -> None:
    """Check that what is read back never changes, but from exact to quantised, once.

    Raises:
        Departure: if it does.
    """
    before = after(trace, 0)
    for number in range(1, len(trace.passes)):
        now = after(trace, number)
        start = trace.passes[number].start
        for number_of_layer, (old, new) in enumerate(zip(before, now, strict=True)):
            for index, name in enumerate(NAMES):
                one, two = read(old, index), read(new, index)[:, :, :start]
                settled_before = ~old.exact[index] & old.held & new.held[:, :, :start]
                changed = (one != two).any(-1) & settled_before & ~(one.isnan() & two.isnan()).any(-1)
                if not changed.any():
                    continue
                token = int(torch.nonzero(changed.flatten(0, 1).any(0))[0])
                own = arrived(trace, number_of_layer, index)[:, :, :start]
                chosen = settled_before[..., None].expand_as(one)
                check_same_entries(
                    two[chosen],
                    one[chosen],
                    own[chosen],
                    f"{name} of layer {number_of_layer} that were quantised before pass {number} "
                    f"({start} tokens seen, fed {feeding}) are read back otherwise after it, token {token} first,",
                )
        before = now


def check_feedings(subject: Subject) -> None:
    """Check that tokens beyond the residual are read back the same, however they were fed.

    Raises:
        Departure: if they are not.
    """
    whole = after(fed(subject, "whole"))
    ways = feedings(quantised.length_of(subject))
    for feeding in list(ways)[1:]:
        other = after(fed(subject, feeding))
        trace = fed(subject, feeding)
        for number, (one, two) in enumerate(zip(whole, other, strict=True)):
            for index, name in enumerate(NAMES):
                old = min(settled(subject, index, layers) for layers in (whole, other))
                where = f"{name} of layer {number} beyond the newest {trace.passes[-1].end - old}"
                exact, also = one.exact[index][:, :, :old], two.exact[index][:, :, :old]
                if (exact != also).any():
                    token = int(torch.nonzero((exact != also).flatten(0, 1).any(0))[0])
                    which = (feeding, "fed whole") if bool(also[:, :, token].any()) else ("fed whole", feeding)
                    raise Departure(
                        f"of {where}, token {token} is exact {which[0]} and quantised {which[1]}: "
                        f"{int(also.all(1).sum())} of {old} are exact when fed {feeding}, {int(exact.all(1).sum())} "
                        "when fed whole"
                    )
                check_same_entries(
                    read(two, index)[:, :, :old],
                    read(one, index)[:, :, :old],
                    arrived(trace, number, index)[:, :, :old],
                    f"{where} are read back otherwise when fed {feeding} than when fed whole,",
                )


def check_residual(subject: Subject) -> None:
    """Check that the newest entries are exact after every pass, and older ones are not, but for a block of them.

    Raises:
        Departure: if they are not.
    """
    declared, sinks = subject.declares.residual, subject.declares.sinks
    counts: dict[str, set[int]] = {}
    most, waiting = (declared or 0) + quantised.most_behind(subject), 0
    for feeding in feedings(quantised.length_of(subject)):
        trace = fed(subject, feeding)
        for number, one in enumerate(trace.passes):
            layers = after(trace, number)
            for index, name in enumerate(NAMES):
                newest = quantised.newest_exact(layers, index)
                counts.setdefault(name, set()).add(newest)
                if declared is None:
                    continue
                where = f"{name} after pass {number} ({one.end} tokens seen, fed {feeding})"
                if newest < min(declared, one.end):
                    raise Departure(f"{where}: the newest {newest} are exact; {min(declared, one.end)} are declared")
                old = settled(subject, index, layers)
                waiting = max(waiting, min(newest, most))
                for depth, layer in enumerate(layers):
                    exact = layer.exact[index][:, :, sinks:old].flatten(0, 1).any(0)
                    if exact.any():
                        raise Departure(
                            f"{where}: token {sinks + int(torch.nonzero(exact)[0])} is exact in layer {depth}, and "
                            f"{int(exact.sum())} of the {old - sinks} that are older than the newest {one.end - old}; "
                            f"a residual of {declared} is declared"
                        )
    size = quantised.largest_block(subject)
    if declared is not None and waiting >= declared + size:
        note(
            f"up to {waiting} of the newest tokens are exact, and {declared} are declared as the residual: they are "
            "quantised in blocks"
        )
    if declared is None:
        ranges = ", ".join(f"{min(each)} to {max(each)} of the {name}" for name, each in counts.items())
        not_applicable(f"the subject declares no residual; the newest {ranges} are exact")
