"""Pages with outputs of their code: numbers and findings are reproduced, and each false result of
``docs/false-results.md`` differs from the true one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pressgauge import KnormPress, perplexity
from pressgauge.conformance.versions import using
from tools.false_results import PAGE, SHOWING, Output, mended, run, same


@pytest.fixture(scope="module")
def page() -> tuple[list[Output], dict[str, Any]]:
    """Outputs of the page, and names defined by its code."""
    return run(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def names(page: tuple[list[Output], dict[str, Any]]) -> dict[str, Any]:
    """Names defined by the code of the page."""
    return page[1]


@pytest.mark.parametrize("path", SHOWING, ids=lambda path: path.stem)
def test_the_page_shows_what_its_code_prints(path: Path, page: tuple[list[Output], dict[str, Any]]) -> None:
    """Outputs on a page are those of its code, to the digits shown; ``python -m tools.false_results`` updates it."""
    text = path.read_text(encoding="utf-8")
    outputs, _ = page if path == PAGE else run(text, str(path))
    assert len(outputs) == text.count("\n<!-- /")
    wrong = [f"{output.name} shows\n{output.shown}\nand prints\n{output.printed}" for output in outputs]
    assert [text for text, output in zip(wrong, outputs, strict=True) if not output.agrees] == []


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("3.59", "3.60", True),
        ("3.59", "3.61", False),
        ("16", "16", True),
        ("16", "17", False),
        ("4e+05", "5e+05", True),
        ("4e+05", "4e+06", False),
    ],
)
def test_numbers_are_compared_to_the_digits_shown(shown: str, printed: str, expected: bool) -> None:
    """Integers are compared exactly, and other numbers may differ by one in the last digit."""
    assert same(shown, printed) is expected


def test_a_false_output_is_found_and_updated() -> None:
    """A changed number, word or line is found and updated; in recorded times, only a changed word."""
    blocks = [("numbers", "a", 'print("ppl", 3.5)'), ("recorded", "b", 'print("ratio", 1.25)')]
    text = "".join(
        f"```python\n{code}\n```\n\n<!-- {kind}: {name} -->\n<!-- /{kind} -->\n" for kind, name, code in blocks
    )
    first, _ = run(text)
    assert [output.agrees for output in first] == [False, False]
    good = mended(text, first)
    assert all(output.agrees for output in run(good)[0])
    for old, new, expected in [
        ("    ppl 3.5", "    ppl 3.7", [False, True]),
        ("    ppl 3.5", "    nll 3.5", [False, True]),
        ("    ppl 3.5", "    ppl 3.5\n    ppl 3.5", [False, True]),
        ("    ratio 1.25", "    ratio 7.5", [True, True]),
        ("    ratio 1.25", "    time 1.25", [True, False]),
    ]:
        changed = good.replace(old, new)
        outputs, _ = run(changed)
        assert [output.agrees for output in outputs] == expected
        # Recorded outputs are not updated.
        assert mended(changed, outputs) == (changed if all(expected) else good)


def test_one_pass_without_the_cache_does_not_change_perplexity(names: dict[str, Any]) -> None:
    """Without the cache, perplexity is equal at every ratio, while the true one at least doubles."""
    unmoved, moved = names["unmoved"], names["moved"]
    assert unmoved[0.1] == unmoved[0.5] == unmoved[1] == pytest.approx(moved[1].ppl, rel=1e-5)
    assert moved[0.1].ppl > moved[0.5].ppl > 1.5 * unmoved[1]
    assert moved[0.1].ppl > 2 * unmoved[1]


def test_results_without_an_affected_token_are_vacuous(names: dict[str, Any]) -> None:
    """Without affected tokens, perplexity is bit-identical, and the result is vacuous at every ratio except 1."""
    for ratio in (0.5, 0.1):
        press = KnormPress(ratio, prune_after=64)
        for result in (names["short"][ratio], perplexity(names["model"], names["ids"], press, method="plain")):
            assert result.vacuous
            assert (result.evictions, result.affected_tokens) == (0, 0)
        assert names["short"][ratio].nll.equal(names["uncompressed"].nll)
        moved = names["moved"][ratio]
        assert not moved.vacuous
        # Query 65 is the first that misses an entry, and scores token 66.
        assert moved.affected_tokens == 2 * (512 - 66)
    assert not names["short"][1].vacuous, "uncompressed is not vacuous"


def test_positions_from_held_lose_recalled_facts(names: dict[str, Any]) -> None:
    """Positions from the number held raise the NLL of recalled values at least threefold and the rise of perplexity
    more than twofold, with the same evictions."""
    recalled = names["recalled"]
    true, false = names["from_seen"].nll, names["from_held"]
    assert names["alike"]
    assert false[recalled].mean().exp() > 3 * true[recalled].mean().exp()
    plain = names["uncompressed"].ppl
    assert false.mean().exp() - plain > 2 * (true.mean().exp() - plain)


def test_positions_are_the_only_difference(names: dict[str, Any]) -> None:
    """The NLL is equal before the first eviction, and some tokens differ by nats after it."""
    difference = (names["from_held"] - names["from_seen"].nll).abs()
    assert difference[:, :128].max() < 1e-9
    assert difference[:, 128:].max() > 3


def test_unprotected_new_entries_are_evicted_first(names: dict[str, Any]) -> None:
    """Without protection most new entries are evicted at once, which triples perplexity; with ``recent`` none is, and
    at least half of the rise is avoided."""
    unprotected, protected = names["unprotected"], names["protected"]
    assert unprotected.held == protected.held
    assert names["evicted_at_once"](unprotected) > 0.5
    assert names["evicted_at_once"](protected) == 0
    plain = names["uncompressed"].ppl
    assert unprotected.ppl > 3 * plain
    assert protected.ppl - plain < (unprotected.ppl - plain) / 2


def test_a_larger_ratio_is_worse_under_step_only(names: dict[str, Any]) -> None:
    """From .95 to .1, perplexity falls by a fifth or more under ``step``, changes by at most a tenth with the newest
    protected, and rises at every ratio under ``budget``."""
    step, recent, budget = ([result.ppl for result in curve] for curve in names["curves"].values())
    assert step[0] > 1.25 * step[-1]
    assert max(recent) < 1.1 * min(recent)
    assert max(recent) < min(step)
    assert budget == sorted(set(budget))
    assert max(result.held[0] for result in names["curves"]["step"]) <= 32, "prune_after, whatever the ratio"


def test_the_first_token_does_not_depend_on_the_press(names: dict[str, Any]) -> None:
    """Evictions follow the logits of the first token, which are bit-identical."""
    assert names["plain_logits"].equal(names["pressed_logits"])
    assert set(names["pressed_cache"].held) == {128}


def test_positions_after_a_compressed_prompt(names: dict[str, Any]) -> None:
    """Positions from the compressed length put single tokens off by nats, though perplexity by 10 % at most; with true
    positions, a plain loop gives the NLL of the library."""
    assert names["wrong_positions"] == [128, 129, 130]
    assert names["true_positions"] == [256, 257, 258]
    true, false = names["after_prompt"].nll, names["compressed_length"]
    assert (names["true_length"] - true).abs().max() < 1e-9
    assert (false - true).abs().max() > 2
    assert 1.01 < (false.mean() - true.mean()).exp() < 1.1


def test_a_plain_loop_over_a_pressed_cache_is_right(names: dict[str, Any]) -> None:
    """A plain loop over a ``PressedCache`` gives correct positions, since it reports the tokens seen."""
    model, ids, true = names["model"], names["ids"][:, :320], names["after_prompt"]
    cache = names["prompt_press"].cache(model.config, unpadded=True)
    with torch.no_grad():
        logits = [model(part, **using(cache)).logits[:, -1:] for part in ids.split([256] + [1] * 64, dim=1)]
    assert cache.get_seq_length() == 320
    assert max(cache.held) == 128 + 64
    nll = names["nll_of"](torch.cat(logits[:-1], dim=1), ids[:, 256:])
    assert (nll - true.nll[:, :64]).abs().max() < 1e-9


def test_too_good_to_be_true(names: dict[str, Any]) -> None:
    """Long passes hide at least half of the rise; sampled text scores below the entropy, true results do not; and
    without the shift perplexity is larger by orders of magnitude."""
    plain, honest = names["uncompressed"].ppl, names["honest"].ppl
    assert names["in_passes"] - plain < (honest - plain) / 2
    assert names["own"] < 0.9 * names["floor"]
    assert names["floor"] < plain < honest
    assert names["unshifted"] > 1000 * plain
