"""Sweeps measure nothing twice, confuse no results, and can be resumed."""

import json
import math
import os
import signal
import subprocess
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from pressgauge import KnormPress, Press, RandomPress, perplexity
from pressgauge.bench import sweep
from pressgauge.bench.journal import Journal, digest
from pressgauge.bench.plan import Plan
from pressgauge.bench.row import Row
from pressgauge.bench.sweep import fingerprint, prepare, run_sweep
from pressgauge.cli import app
from pressgauge.conformance import architectures
from pressgauge.models import interface, load, load_parts
from pressgauge.texts import load_text
from support.prepared import python


def plan(**changes: Any) -> Plan:
    """A small plan: two presses at two ratios on the reference model."""
    presses: dict[str, tuple[Press, ...]] = {
        "knorm": (KnormPress(1.0, prune_after=16), KnormPress(0.5, prune_after=16)),
        "random": (RandomPress(1.0, prune_after=16), RandomPress(0.5, prune_after=16)),
    }
    usual: dict[str, Any] = {
        "presses": presses,
        "models": ("reference",),
        "texts": ("reference",),
        "samples": 1,
        "tokens": 40,
        "prompt": 1,
        "device": torch.device("cpu"),
        "dtype": "float32",
    }
    return Plan(**(usual | changes))


def test_rows_come_model_by_model_text_by_text_press_by_press(tmp_path: Path) -> None:
    """Rows are ordered by model, text and press; each press begins with the uncompressed row under its own name, and
    has the numbers of ``perplexity``."""
    text = tmp_path / "text.txt"
    text.write_text("the old river runs . " * 40, encoding="utf-8")
    wanted = plan(models=("reference", "reference-neox"), texts=("reference", str(text)))
    rows = run_sweep(wanted, prepare(wanted)).rows
    assert [(row.model, row.text, row.press, row.keep_ratio) for row in rows] == [
        (model, name, press, ratio)
        for model in wanted.models
        for name in wanted.texts
        for press in ("knorm", "random")
        for ratio in (1.0, 0.5)
    ]
    for first, other in ((0, 2), (4, 6)):
        assert rows[first].ppl == rows[other].ppl
        assert rows[first].verdict == "uncompressed"
    assert len({row.ppl for row in rows}) == 4 * 3


def test_the_uncompressed_run_is_measured_once_per_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The uncompressed run is measured once per text, for all presses."""
    asked: list[Press | None] = []

    def counted(model: Any, ids: Any, press: Press | None, prompt: int, **options: Any) -> Any:
        asked.append(press)
        return perplexity(model, ids, press, prompt, **options)

    monkeypatch.setattr(sweep, "perplexity", counted)
    wanted = plan()
    run_sweep(wanted, prepare(wanted))
    assert asked == [None, wanted.presses["knorm"][1], wanted.presses["random"][1]]


def test_an_unsupported_model_is_refused_before_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason that only the loaded model shows is refused before any measurement."""
    model = architectures.build("llama")
    monkeypatch.setattr(interface, "goes_through_interface", lambda kind: kind is not type(model.model))
    monkeypatch.setattr(sweep, "load", lambda name, **options: (model, None))
    monkeypatch.setattr(sweep, "perplexity", lambda *arguments, **options: pytest.fail("this was measured"))
    wanted = plan()
    with pytest.raises(ValueError, match="does not go through transformers' attention interface"):
        run_sweep(wanted, prepare(wanted))


def test_a_text_of_mostly_unknown_words_gets_a_warning_in_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of mostly unknown tokens gives a warning in every row, and a known text gives none."""
    model, _ = load("reference")
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"the": 0, "?": 1}, unk_token="?")), unk_token="?"
    )
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    monkeypatch.setattr(sweep, "load", lambda name, **options: (model, other))
    monkeypatch.setattr(sweep, "load_parts", lambda name, **options: (model.config, other))
    strange, known = tmp_path / "strange.txt", tmp_path / "known.txt"
    strange.write_text("the a b c " * 20, encoding="utf-8")
    known.write_text("the the b c " * 20, encoding="utf-8")
    monkeypatch.setattr(model.config, "vocab_size", 10**9)
    wanted = plan(texts=(str(strange), str(known)))
    found = run_sweep(wanted, prepare(wanted)).rows
    assert [row.warnings for row in found[:4]] == [
        ("75% of the text's tokens are unknown to the model's tokenizer",)
    ] * 4
    assert [row.verdict for row in found[:4]] == ["uncompressed", "no verdict"] * 2
    assert all(not row.warnings and row.verdict != "no verdict" for row in found[4:])


@pytest.mark.parametrize("above", [False, True])
def test_an_uncompressed_perplexity_above_the_vocabulary_is_a_warning(
    above: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An uncompressed perplexity above the vocabulary size gives a warning, and one equal to it gives none."""
    model, tokenizer = load("reference")
    monkeypatch.setattr(sweep, "load", lambda name, **options: (model, tokenizer))
    wanted = plan()
    samples = prepare(wanted)
    nll = math.log(tokenizer.vocab_size)
    guess = torch.full((1, 39), math.nextafter(nll, 9 if above else 0), dtype=torch.float64)
    monkeypatch.setattr(sweep, "perplexity", lambda *given, **more: replace(perplexity(*given, **more), nll=guess))
    found = run_sweep(wanted, samples).rows
    assert all(bool(row.warnings) == above for row in found)


def test_a_text_with_a_token_beyond_the_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any weights are loaded: a tokenizer may have more tokens than the model has embeddings."""
    config, tokenizer = load_parts("reference")
    monkeypatch.setattr(sweep, "load_parts", lambda name, **options: (config, tokenizer))
    most = int(load_text("reference", tokenizer, samples=1, tokens=40).max())
    monkeypatch.setattr(config, "vocab_size", most + 1)
    prepare(plan())
    monkeypatch.setattr(config, "vocab_size", most)
    sentence = (
        f"text 'reference' has the token id {most} by the tokenizer of 'reference', which has embeddings of {most} "
        "tokens: give another text, or a model whose tokenizer fits its weights"
    )
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        prepare(plan())


def test_a_press_that_acts_once_is_timed_after_the_whole_prompt() -> None:
    """Timing under ``prefill`` uses the whole prompt, which exceeds prune_after."""
    press = KnormPress(0.5, prune_after=34, schedule="prefill")
    wanted = plan(presses={"knorm": (replace(press, keep_ratio=1.0), press)}, prompt=36, timing=True)
    whole, pressed = run_sweep(wanted, prepare(wanted)).rows
    assert whole.peak_memory_bytes is not None
    assert pressed.peak_memory_bytes is not None
    # Nine more tokens are fed after the prompt.
    assert pressed.peak_memory_bytes < 0.75 * whole.peak_memory_bytes


@pytest.mark.parametrize("timing", [False, True])
def test_progress_has_all_steps_of_the_plan(timing: bool) -> None:
    """Progress has all steps of the plan, each with a name."""
    wanted = plan(timing=timing)
    done: list[tuple[str, int]] = []
    run_sweep(wanted, prepare(wanted), advance=lambda what, steps: done.append((what, steps)))
    assert sum(steps for _, steps in done) == wanted.steps
    assert done[-1][0] == "reference on reference: random 0.5"


def test_times_are_taken_of_every_row_and_of_two_uncompressed_arms() -> None:
    """Every row has times, and the uncompressed row a ratio of two uncompressed arms with its interval."""
    wanted = plan(timing=True)
    for row in run_sweep(wanted, prepare(wanted)).rows:
        for ratio, interval in ((row.ttft_ratio, row.ttft_interval), (row.tpot_ratio, row.tpot_interval)):
            assert ratio is not None
            assert interval is not None
            assert interval[0] <= ratio <= interval[1]
        assert row.peak_memory_of == "cache"
        assert row.tokens_per_second is not None
        assert row.tokens_per_second > 0
        # Ten of 40 tokens are generated, and the last is never fed; per layer 2 heads of entries of 2 * 32 * 4 bytes.
        held = 39 if row.keep_ratio == 1 else 20
        assert row.peak_memory_bytes == pytest.approx(3 * 2 * held * 2 * 32 * 4, rel=0.02)


def test_figures_show_the_measurements() -> None:
    """Figures have a map per press, of its smallest ratio and first sample, and a correlation per text."""
    wanted = plan(samples=2)
    found = run_sweep(wanted, prepare(wanted), pictures=True)
    assert list(found.maps) == [f"reference on reference: {name}, keep ratio 0.5" for name in ("knorm", "random")]
    for tables in found.maps.values():
        assert [table.shape for table in tables] == [(1, 2, 40)] * 3
    assert found.correlations["reference on reference"].shape == (3, 2)


def journal(path: Path) -> Journal:
    """A resumed journal."""
    return Journal(path, resume=True)


def test_a_resumed_sweep_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed sweep measures nothing in the journal again, and gives the same rows."""
    path = tmp_path / "journal"
    wanted = plan()
    whole = run_sweep(wanted, prepare(wanted), journal(tmp_path / "another")).rows
    left = 2

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return perplexity(*args, **options)

    monkeypatch.setattr(sweep, "perplexity", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(wanted, prepare(wanted), journal(path))
    left = 1
    assert run_sweep(wanted, prepare(wanted), journal(path)).rows == whole
    left = 0
    assert run_sweep(wanted, prepare(wanted), journal(path)).rows == whole


def test_bands_are_no_part_of_a_result(tmp_path: Path) -> None:
    """Other bands of a resumed sweep change all rows, without new measurements."""
    path = tmp_path / "journal"
    before = run_sweep(plan(), prepare(plan()), journal(path)).rows
    lines = path.read_text()
    other = plan(bands=(0.01,))
    after = run_sweep(other, prepare(other), journal(path)).rows
    assert path.read_text() == lines
    assert after == tuple(replace(row, bands=(0.01,)) for row in before)


def keys(wanted: Plan, path: Path) -> set[str]:
    """Keys of a plan's results."""
    written = Journal(path, resume=False)
    run_sweep(wanted, prepare(wanted), written)
    found = {json.loads(line)["key"] for line in path.read_text().splitlines()}
    written.close()
    return found


def test_no_result_is_mistaken_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any change that affects a result changes its key."""
    monkeypatch.setattr(sweep, "load", cache(load))
    path = tmp_path / "journal"
    one: dict[str, tuple[Press, ...]] = {"knorm": (KnormPress(1.0), KnormPress(0.5, prune_after=16))}
    base = keys(plan(presses=one), path)
    assert len(base) == 2
    for press in (
        KnormPress(0.6, prune_after=16),
        KnormPress(0.5, prune_after=17),
        KnormPress(0.5, prune_after=16, skip_layers=(0,)),
        KnormPress(0.5, prune_after=16, sinks=1),
        KnormPress(0.5, prune_after=16, recent=1),
        KnormPress(0.5, prune_after=16, schedule="step"),
        KnormPress(0.5, prune_after=16, interval=2),
        RandomPress(0.5, prune_after=16),
        RandomPress(0.5, prune_after=16, seed=1),
    ):
        changed = keys(plan(presses={"knorm": (KnormPress(1.0), press)}), path)
        assert len(changed & base) == 1, f"{press}: only the uncompressed result is the same"
    for change in ({"tokens": 41}, {"samples": 2}, {"prompt": 2}, {"dtype": "float64"}, {"timing": True}):
        assert not keys(plan(presses=one, **change), path) & base, str(change)
    assert not keys(plan(presses=one, models=("reference-neox",)), path) & base
    monkeypatch.setattr(sweep, "versions", lambda: {"torch": "another"})
    assert not keys(plan(presses=one), path) & base


def test_a_fingerprint_covers_weights_and_configuration() -> None:
    """One changed number in a weight changes the fingerprint of a model, and so does another rotary base."""
    model = architectures.build("llama")
    before = fingerprint(model)
    assert fingerprint(architectures.build("llama")) == before
    weights = dict(model.named_parameters())
    with torch.no_grad():
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] += 1e-9
    assert fingerprint(model) != before
    other = architectures.build("llama")
    other.config.rms_norm_eps = 1e-3
    assert fingerprint(other) != before
    half = architectures.build("llama").to(torch.bfloat16)
    assert fingerprint(half) != before


ROW = Row(
    "knorm",
    "budget",
    0.5,
    16,
    (0,),
    "m",
    "t",
    "float32",
    "cpu",
    3.0000000000000004,
    0.1,
    (0.05, 0.1 + 0.2),
    "8 blocks of 1 sample",
    0.5,
    9,
    8,
    7,
    (4, 3),
    5,
    False,
    nll_sums=((1.1, 2.2), (3.3,)),
    token_counts=((2.0, 2.0), (1.0,)),
)


def test_a_row_survives_the_journal(tmp_path: Path) -> None:
    """A row is read from the journal exactly, including missing and infinite values."""
    path = tmp_path / "journal"
    rows = {
        "a": ROW,
        "b": replace(ROW, ppl=float("inf"), tpot_ratio=0.1 + 0.2, tpot_interval=(0.1, 0.7), warnings=("one", "two")),
        "c": replace(ROW, ppl=float("nan"), ppl_change=float("-inf")),
    }
    written = Journal(path, resume=False)
    for key, row in rows.items():
        written.add(key, row)
    found = Journal(path, resume=True)
    # NaN is not equal to NaN.
    assert repr({key: found.find(key) for key in rows}) == repr(rows)
    assert found.find("d") is None
    found.close()
    assert not path.exists()


def test_an_incomplete_line_is_left_out(tmp_path: Path) -> None:
    """An incomplete line of a journal is ignored, and later lines are not appended to it."""
    path = tmp_path / "journal"
    Journal(path, resume=False).add("a", ROW)
    whole = path.read_text()
    path.write_text(whole + whole[:50].replace('"a"', '"b"'))
    found = Journal(path, resume=True)
    assert (found.find("a"), found.find("b")) == (ROW, None)
    found.add("c", ROW)
    assert Journal(path, resume=True).find("c") == ROW


def test_rows_of_another_version_are_neither_used_nor_lost(tmp_path: Path) -> None:
    """A journal of another version is refused and not changed; a row of one among others is not used."""
    path = tmp_path / "journal"
    old = '{"key": "old", "row": {"press": "knorm"}}\n'
    path.write_text(old)
    with pytest.raises(ValueError, match=r"line 1: it is no line of a journal of this version\): delete it"):
        Journal(path, resume=True)
    assert path.read_text() == old
    path.unlink()
    Journal(path, resume=False).add("a", ROW)
    path.write_text(path.read_text() + old)
    found = Journal(path, resume=True)
    assert (found.find("a"), found.find("old")) == (ROW, None)


def test_a_journal_is_neither_used_nor_lost_unless_it_is_to_be_resumed(tmp_path: Path) -> None:
    """An existing journal is refused without ``resume``, with the way out."""
    path = tmp_path / "journal"
    Journal(path, resume=False).add("a", ROW)
    with pytest.raises(ValueError, match="continue with --resume, or delete it"):
        Journal(path, resume=False)
    assert Journal(path, resume=True).find("a") == ROW


def test_equal_things_have_equal_digests_in_any_order() -> None:
    """Digests do not depend on order, and differ for different contents."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})


def test_a_killed_and_resumed_sweep_writes_the_same_rows(tmp_path: Path) -> None:
    """A sweep killed between two results and resumed in a process with equally many threads writes the rows of an
    uninterrupted one."""
    options = "--press knorm,random,keydiff --keep-ratios 0.9,0.7,0.5 --tokens 200 --samples 2".split()
    options += "--prune-after 16 --device cpu".split()
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    assert CliRunner().invoke(app, ["measure", *options, "--json", str(whole)]).exit_code == 0
    process = subprocess.Popen(
        [*python(), "-m", "pressgauge", "measure", *options, "--json", str(cut)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    unfinished = tmp_path / "cut.json.unfinished"
    deadline = time.monotonic() + 120
    while not (unfinished.exists() and len(unfinished.read_text().splitlines()) >= 3):
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    # Ends when nobody can write any more.
    process.communicate(timeout=120)
    assert not cut.exists()
    refused = CliRunner().invoke(app, ["measure", *options, "--json", str(cut)], env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    assert "continue with --resume" in refused.output
    assert CliRunner().invoke(app, ["measure", *options, "--json", str(cut), "--resume"]).exit_code == 0
    assert cut.read_bytes() == whole.read_bytes()
    assert not unfinished.exists()
