"""Ranks that share a sweep: the result of one process for every number of ranks, interrupted or not."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from pressgauge import KnormPress, Press, RandomPress
from pressgauge.bench import merging, parts, sharing, sweep, task_sweep
from pressgauge.bench.cells import Share, split
from pressgauge.bench.compressors import compressors
from pressgauge.bench.journal import Journal, threads_of
from pressgauge.bench.merging import Report, Sweep, merged
from pressgauge.bench.metrics import Metric
from pressgauge.bench.plan import Plan, TaskPlan
from pressgauge.bench.quantities import Quantity
from pressgauge.bench.ranks import Lost, Ranks
from pressgauge.bench.sharing import Unfinished, costs, run_shared, share_of
from pressgauge.models import load
from pressgauge.tasks.fitting import Prompts

SAMPLES = 3


class Drawing(DynamicCache):
    """Adds noise to its entries, drawn from all generators at hand."""

    def update(self, key_states: Any, value_states: Any, *given: Any, **more: Any) -> Any:
        noise = torch.rand(1).item() + random.random()
        return super().update(key_states * (1 + noise / 50), value_states, *given, **more)


def drawing(config: Any) -> Drawing:
    return Drawing(config=config)


def entries(compressed: Any, uncompressed: Any) -> float:
    """A metric over fields that a row does not have."""
    own = sum(float((table < 2**31 - 1).sum()) for table in compressed.evicted_at)
    return own + float((compressed.nll - uncompressed.nll).abs().max())


METRIC = Metric("mine:entries", entries, Quantity("entries", "evicted entries and the worst token"))


def pair(kind: Any, **options: Any) -> tuple[Press, ...]:
    return tuple(kind(ratio, prune_after=16, **options) for ratio in (1.0, 0.5))


@cache
def plan(kind: str = "press") -> Plan:
    """A small sweep of one kind; each has fewer cells than three ranks, except for ``all``."""
    own = compressors("drawing", "mine:drawing", drawing, {}, (1.0, 0.5), {})
    assert own is not None
    texts: dict[str, Any] = {"press": {"knorm": pair(KnormPress)}, "compressor": {"drawing": own}, "task": {}}
    texts["all"] = {"knorm": pair(KnormPress), "random": pair(RandomPress), "drawing": own}
    lines = {"knorm": (pair(KnormPress, schedule="prefill"),)}
    tasks = TaskPlan(("recall",), lines, SAMPLES, 100) if kind in ("task", "all") else TaskPlan()
    return Plan(
        presses=texts[kind],
        models=("reference",),
        texts=("reference",) if kind != "task" else (),
        samples=SAMPLES,
        tokens=40,
        prompt=1,
        device=torch.device("cpu"),
        dtype="float32",
        metrics=(METRIC,) if kind in ("press", "all") else (),
        of_tasks=tasks,
    )


@pytest.fixture(autouse=True)
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "load", loaded)


@cache
def loaded(name: str, **options: Any) -> Any:
    return load(name)


@cache
def prepared(kind: str) -> tuple[dict[tuple[str, str], Any], dict[str, dict[str, Prompts]]]:
    wanted = plan(kind)
    return sweep.prepare(wanted), {"reference": task_sweep.prepare_tasks(wanted.of_tasks, "reference")}


def measure(kind: str, share: Share, journal: Journal | None = None) -> Report:
    """The report of a rank."""
    texts, prompts = prepared(kind)
    none: Callable[..., None] = lambda *given: None  # noqa: E731
    return sweep.measure(plan(kind), share, texts, journal, prompts, False, none, none)


def content(found: Sweep) -> str:
    """All rows to the last digit."""
    assert not found.missing
    rows = [row.as_dict() for row in found.rows]
    return json.dumps(rows + [row.as_dict() for row in found.tasks])


def everything(kind: str) -> Share:
    return {index: range(SAMPLES) for index in range(len(plan(kind).cells))}


@cache
def alone(kind: str) -> str:
    """The result of one process without a launcher."""
    return content(merged(plan(kind), [measure(kind, everything(kind))]))


def shares(kind: str, ranks: int) -> list[Share]:
    return split(costs(plan(kind), set()), SAMPLES, ranks)


def check_equal(kind: str, ranks: int) -> None:
    reports = [measure(kind, share) for share in shares(kind, ranks)]
    assert content(merged(plan(kind), reports)) == alone(kind)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kind", ["press", "compressor", "task", "all"])
def test_ranks_have_the_result_of_one_process(kind: str, ranks: int) -> None:
    """To the last digit: by cells or by samples, metrics, distances, tasks, and compressors that draw at random."""
    check_equal(kind, ranks)


@pytest.mark.parametrize("kind", ["press", "compressor", "task"])
def test_any_assignment_has_the_result_of_one_process(kind: str) -> None:
    """Every sample by a rank of its own, in the other order."""
    cells = range(len(plan(kind).cells))
    reports = [measure(kind, {index: range(sample, sample + 1)}) for index in cells for sample in range(SAMPLES)]
    assert content(merged(plan(kind), reports[::-1])) == alone(kind)


def stored(kind: str, path: Path, rank: int) -> Journal:
    return Journal(path, resume=True, plan=plan(kind).as_dict(), rank=rank)


@pytest.mark.parametrize("kind", ["press", "compressor", "task", "all"])
@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 2), (1, 3), (2, 3)])
def test_a_sweep_goes_on_with_another_number_of_ranks(
    kind: str, before: int, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ranks had finished before the last died is not measured again, and the result is that of one process."""
    path = tmp_path / "rows.json.unfinished"
    for rank, share in enumerate(shares(kind, before)[: max(1, before - 1)]):
        some = dict(list(share.items())[: max(1, len(share) - 1)])
        measure(kind, some, stored(kind, path, rank))
    left = split(costs(plan(kind), stored(kind, path, 0).cells(SAMPLES)), SAMPLES, after)
    known = set(stored(kind, path, 0).rows)
    reports = [measure(kind, share, stored(kind, path, rank)) for rank, share in enumerate(left)]
    whole = merged(plan(kind), reports)
    expected = json.loads(alone(kind))
    for row in json.loads(content(whole)):
        # A journal needs to know the weights.
        own = expected.pop(0)
        assert row | {"weights_sha256": ""} == own | {"weights_sha256": ""}
    assert not expected
    written = [json.loads(line) for file in sorted(tmp_path.iterdir()) for line in file.read_bytes().splitlines()]
    keys = [entry["key"] for entry in written if "key" in entry]
    assert len(keys) == len(set(keys))
    assert known <= set(keys)


def test_a_rank_without_a_report_leaves_cells_missing() -> None:
    """Each is named, and those of other ranks are there."""
    own = shares("all", 3)
    found = merged(plan("all"), [measure("all", own[0]), measure("all", own[2])])
    assert [line.removesuffix(" was not measured") for line in found.missing] == [
        str(plan("all").cells[index]) for index in own[1]
    ]


def broken(patch: pytest.MonkeyPatch, mutant: str) -> None:
    """Break the merging."""
    joined = parts.joined
    answers = parts.joined_answers
    if mutant == "counts the first sample twice":
        patch.setattr(parts, "joined", lambda results: joined([results[0], *results]))
        patch.setattr(parts, "joined_answers", lambda results: answers([results[0], *results]))
    if mutant == "drops the last sample":
        patch.setattr(parts, "joined", lambda results: joined(results[:-1]))
    if mutant == "orders samples by rank":
        patch.setattr(parts, "joined", lambda results: joined(results[::-1]))
    if mutant == "keeps the size of one sample":
        patch.setattr(parts, "joined", lambda results: replace(joined(results), kv_bytes=results[0].kv_bytes))
    if mutant == "drops a rank's last cell":
        together = merging._together

        def dropped(reports: Any) -> Report:
            for report in reports:
                report.rows.pop(max(report.rows), None)
            return together(reports)

        patch.setattr(merging, "_together", dropped)


@pytest.mark.parametrize(
    ("mutant", "kind"),
    [
        ("counts the first sample twice", "press"),
        ("counts the first sample twice", "task"),
        ("drops the last sample", "press"),
        ("orders samples by rank", "press"),
        ("keeps the size of one sample", "press"),
        ("drops a rank's last cell", "all"),
    ],
)
def test_broken_merging_is_caught(mutant: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(kind)
    broken(monkeypatch, mutant)
    with pytest.raises(AssertionError):
        check_equal(kind, 2)


def test_another_machine_reads_a_sample_from_the_journal_to_the_last_digit(tmp_path: Path) -> None:
    """A sample's result, with tensors, survives its form in the journal."""
    for kind in ("press", "compressor", "task"):
        path = tmp_path / kind
        report = measure(kind, {1: range(1, 2)}, stored(kind, path, 0))
        ((key, _),) = stored(kind, path, 0).rows.items()
        read = stored(kind, path, 0).find_part(key)
        assert read is not None
        assert repr(read.as_dict()) == repr(report.parts[1][1].as_dict())


def test_costs_leave_out_what_is_done() -> None:
    cells = plan("all").cells
    assert costs(plan("all"), set()) == [0, 1, 1, 10, 0, 8]
    assert costs(plan("all"), {cells[1], cells[5]}) == [1, 0, 1, 10, 8, 0]


def ranks_with(gather: Callable[[Any], list[Any]], index: int = 0, count: int = 2) -> Any:
    """Ranks that gather by a function."""

    class Given(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return gather(value)

    return Given(index, count)


def shared(kind: str, share: Share, ranks: Ranks, journal: Journal | None = None) -> Sweep | None:
    texts, prompts = prepared(kind)
    none: Callable[..., None] = lambda *given: None  # noqa: E731
    return run_shared(
        plan(kind), share, texts, journal, ranks, prompts=prompts, pictures=False, advance=none, resume=none
    )


def test_an_error_of_one_rank_names_what_is_missing() -> None:
    """The cells that it did not measure are named; an error of all ranks is only named once."""
    own = shares("all", 2)
    other = measure("all", {})
    other.error = "no space"
    with pytest.raises(Unfinished, match="no space") as raised:
        shared("all", own[0], ranks_with(lambda report: [report, other]))
    assert raised.value.missing == ("reference, task recall: uncompressed, knorm prefill 0.5",)


def test_an_error_of_all_ranks_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **more: Any) -> Any:
        raise ValueError("a press does not support this model")

    monkeypatch.setattr(sharing, "measure", fails)
    with pytest.raises(Unfinished, match=r"^a press does not support this model$") as raised:
        shared("press", {}, ranks_with(lambda report: [report, report]))
    assert raised.value.missing == ()


def test_ranks_that_ended_leave_what_their_journals_have(tmp_path: Path) -> None:
    """Rank 0 names the cells that no journal has."""
    path = tmp_path / "rows.unfinished"
    own = shares("all", 3)
    journal = stored("all", path, 0)
    measure("all", {1: range(SAMPLES)}, stored("all", path, 1))

    def lost(value: Any) -> list[Any]:
        raise Lost("other ranks ended")

    with pytest.raises(Unfinished, match="other ranks ended") as raised:
        shared("all", {4: range(SAMPLES)}, ranks_with(lost), journal)
    assert raised.value.missing == (
        "reference on reference: uncompressed, random 0.5, drawing",
        "reference, task recall: knorm prefill 0.5",
    )
    assert own


def test_times_need_a_device_of_ones_own() -> None:
    timed = replace(plan(), timing=True)
    with pytest.raises(ValueError, match="--timing needs a device for each rank, and some of 2 ranks share one"):
        share_of(timed, None, ranks_with(lambda value: [value, True]))
    found = share_of(timed, None, ranks_with(lambda value: [value, value], index=1, count=2))
    # Only whole cells are timed.
    assert all(part == range(SAMPLES) for part in found.values())


def test_ranks_with_other_plans_are_refused() -> None:
    """What differs is named, such as the device of another machine."""

    def gather(value: Any) -> list[Any]:
        return [value, value | {"device": "cuda (H200)"}] if isinstance(value, dict) else [value, value]

    with pytest.raises(ValueError, match=r"ranks must have the same .* got device: cpu .* there and cuda \(H200\) now"):
        share_of(plan(), None, ranks_with(gather))


def test_results_of_other_machines_are_known_to_all(tmp_path: Path) -> None:
    """Where ranks do not see the files of each other, they exchange what is in them."""
    mine, theirs = (stored("press", tmp_path / name, 0) for name in ("a", "b"))
    (tmp_path / "b").unlink(missing_ok=True)
    measure("press", {1: range(SAMPLES)}, theirs)
    gathered: list[Any] = []

    def gather(value: Any) -> list[Any]:
        gathered.append(value)
        if isinstance(value, str):
            return [value, "another digest"]
        if value is mine.rows:
            return [value, theirs.rows]
        return [value, value]

    share_of(plan(), mine, ranks_with(gather))
    assert mine.cells(SAMPLES) == {plan().cells[1]}


def test_threads_are_those_of_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "rows.unfinished"
    assert threads_of(path) is None
    Journal(path, resume=False, plan=plan().as_dict() | {"threads": 7}, rank=2).add(
        "key", next(iter(measure("press", {0: range(SAMPLES)}).rows.values()))
    )
    assert threads_of(path) == 7
