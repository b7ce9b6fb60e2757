"""Third-party compressors in a sweep: by name, with options, and when they fail."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pressgauge.bench.compressors import Compressor
from pressgauge.bench.naming import make, parse, with_options
from pressgauge.bench.results import read_results
from pressgauge.bench.row import OBSERVED, ONE_PASS
from pressgauge.cli import app
from pressgauge.formats import DASH

MODULE = """
from contextlib import contextmanager
from transformers import DynamicCache
from pressgauge import KnormPress


class Window(DynamicCache):
    def __init__(self, config, size=8):
        super().__init__(config=config)
        self.size = size

    def update(self, keys, values, layer, *args, **kwargs):
        whole = super().update(keys, values, layer, *args, **kwargs)
        own = self.layers[layer]
        own.keys, own.values = (states[:, :, -self.size:].clone() for states in (own.keys, own.values))
        return whole


class Any_(Window):
    def __init__(self, config, **kwargs):
        super().__init__(config)


class Rounds(DynamicCache):
    def update(self, keys, values, *args, **kwargs):
        return super().update((keys * 4).round() / 4, (values * 4).round() / 4, *args, **kwargs)


class Cached:
    def __init__(self, keep_ratio, prune_after=32, skip_layers=(), recent=0):
        self.press = KnormPress(keep_ratio, prune_after=prune_after, skip_layers=skip_layers, recent=recent)

    def cache(self, config):
        return self.press.cache(config)


def needy(keep_ratio, bits):
    return Cached(keep_ratio)


def for_a_model(keep_ratio, model, dtype, device, prompt_length):
    given = [model, dtype, device, prompt_length]
    assert None not in given
    return Cached(keep_ratio)


def prefill(keep_ratio):
    @contextmanager
    def attached(model):
        with KnormPress(keep_ratio, prune_after=8, schedule="prefill")(model):
            yield

    return attached


def raises(keep_ratio):
    raise RuntimeError("no such\\ndevice")


def leaves(keep_ratio):
    raise SystemExit(3)


def nothing(keep_ratio):
    return None


def generates():
    def generate(model, input_ids, max_new_tokens=1):
        return input_ids

    return generate


def halves(keep_ratio, **options):
    return Cached(keep_ratio) if keep_ratio < 1 else KnormPress(keep_ratio)


class Breaks(Window):
    def update(self, keys, values, layer, *args, **kwargs):
        if LATE and self.layers and self.layers[0].is_initialized and layer == 1 and self.get_seq_length(0) >= 8:
            raise RuntimeError("expected 3\\nbut got 4")
        return super().update(keys, values, layer, *args, **kwargs)


LATE = True


def changes(keep_ratio):
    @contextmanager
    def attached(model):
        model.model.layers[1].self_attn.mine = True
        if keep_ratio == 0.5:
            model.model.norm.weight.mul_(1.5)
        yield

    return attached


def declared(keep_ratio, prune_after=3):
    return Cached(keep_ratio)


declared.declares = {"prune_after": None, "dtypes": ("float16", "bfloat16")}


def unknown_kind(keep_ratio):
    return Cached(keep_ratio)


unknown_kind.declares = {"kind": "miracle"}
something = 3
"""
OPTIONS = "--samples 1 --tokens 24 --prune-after 8 --keep-ratios 0.5".split()


@pytest.fixture
def third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in the working directory: ``third``."""
    (tmp_path / "third.py").write_text(MODULE)
    (tmp_path / "exits.py").write_text("raise SystemExit(3)")
    (tmp_path / "typo.py").write_text("x = = 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("third", "exits", "typo"):
        sys.modules.pop(name, None)


def measure(*options: str) -> Result:
    return CliRunner().invoke(app, ["measure", *OPTIONS, *options], env={"COLUMNS": "200"})


def made(name: str, *options: str, shared: dict[str, Any] | None = None) -> tuple[Any, ...]:
    (one,) = with_options(parse(name), options)
    return make(one, [1.0, 0.5], shared or {})


@pytest.mark.usefixtures("third")
@pytest.mark.parametrize(
    ("name", "kind", "ratios"),
    [
        ("third:Window", "instance", [1.0, None]),
        ("third:Any_", "instance", [1.0, None]),
        ("third:Window(size=4)", "instance", [1.0, None]),
        ("third:Cached", "cache", [1.0, 0.5]),
        ("third:for_a_model", "cache", [1.0, 0.5]),
        ("third:prefill", "context", [1.0, 0.5]),
        ("third:needy(bits=4)", "cache", [1.0, 0.5]),
        ("transformers:DynamicCache", "instance", [1.0, None]),
        ("transformers:StaticCache(max_cache_len=64)", "instance", [1.0, None]),
    ],
)
def test_a_factory_is_recognised(name: str, kind: str, ratios: list[float | None]) -> None:
    """The convention is that of what it makes; without ``keep_ratio`` there is one compressor."""
    found = made(name)
    assert all(isinstance(one, Compressor) for one in found)
    assert [one.adapter.kind for one in found] == [kind] * 2
    assert [one.keep_ratio for one in found] == ratios


@pytest.mark.usefixtures("third")
def test_a_factory_gets_what_it_names() -> None:
    """Options of the sweep are given as far as they are named, its own and those of ``--option`` in any case."""
    shared = {"prune_after": 8, "skip_layers": (0,)}
    assert made("third:Cached", shared=shared)[1].options == shared
    assert made("third:Cached(recent=2)", "recent=5", shared=shared)[1].options == {**shared, "recent": 2}
    assert made("third:Window", "size=5", shared=shared)[1].options == {"size": 5}
    assert made("third:declared", shared=shared)[1].options == {}
    found = made("third:Window", shared=shared)[1]
    assert (found.schedule, found.prune_after, found.skipped) == (None, None, None)


@pytest.mark.usefixtures("third")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("third:Window(bits=4)", "third:Window does not take bits=4: it takes size"),
        ("third:raises(bits=4)", "third:raises does not take bits=4: it takes no options"),
        ("third:Cached(keep_ratio=0.3)", "third:Cached is given keep_ratio by --keep-ratios, got keep_ratio=0.3"),
        ("third:needy", r"third:needy needs bits: give third:needy\(bits=...\)"),
        ("third:raises", "third:raises cannot be made: RuntimeError: no such device; .* declare its kind"),
        ("third:leaves", "third:leaves cannot be made: SystemExit: 3"),
        ("third:nothing", "third:nothing cannot be measured: the factory returned a NoneType: it has to return a"),
        ("third:generates", "third:generates cannot be measured: a function that generates shows its tokens only"),
        ("third:something", "third:something must be a class or a function that makes a compressor, got 3"),
        ("third:unknown_kind", "declares kind must be one of instance, .*, got 'miracle'"),
        (
            "exits:factory",
            "exits:factory was not found: ImportError: exits must be importable without an exit, got SystemExit: 3",
        ),
        ("typo:factory", "typo:factory was not found: SyntaxError"),
        ("knorm(bits=4)", "knorm does not take bits=4: it takes prune_after, skip_layers"),
    ],
)
def test_what_cannot_be_measured_is_refused(name: str, sentence: str) -> None:
    """A factory that is not found, fails, or does not take its options is refused before any work, in one line."""
    with pytest.raises(ValueError, match=sentence) as raised:
        made(name)
    assert "\n" not in str(raised.value)
    result = measure("--press", f"knorm,{name}")
    assert result.exit_code == 2
    assert result.output.startswith("error: ")


def test_an_option_without_a_factory_is_refused() -> None:
    """``--option`` is for factories that are named by their module."""
    with pytest.raises(ValueError, match="--option size=3 is for compressors named by their module, and --press names"):
        with_options(parse("knorm,random"), ["size=3"])
    assert measure("--option", "size", "--press", "a:b").exit_code == 2


@pytest.mark.usefixtures("third")
def test_tasks_are_for_presses() -> None:
    """A third-party compressor is refused with ``--task``, which generates with presses."""
    result = measure("--press", "knorm,third:Window", "--task", "recall")
    assert result.exit_code == 2
    assert "--task is for presses, got third:Window: leave one of them out" in result.output


@pytest.mark.usefixtures("third")
def test_a_dtype_that_is_not_declared_is_refused() -> None:
    """A compressor that declares its dtypes is not measured in another one."""
    result = measure("--press", "third:declared")
    assert result.exit_code == 2
    assert "third:declared declares dtypes float16, bfloat16, got float32: give --dtype float16" in result.output


def test_presses_and_others_stand_beside_each_other(third: Path) -> None:
    """Rows say how they were measured; what a compressor does not take or show is missing, in JSON, tables and page."""
    names = "knorm,third:Cached,third:Window,third:Rounds"
    result = measure("--press", names, "--json", "rows.json", "--report", "page", "--skip-layers", "none")
    assert result.exit_code == 0, result.output
    rows = {(row.press, row.keep_ratio): row for row in read_results(third / "rows.json").rows}
    own, cached = rows["knorm", 0.5], rows["third:Cached", 0.5]
    assert (own.method, cached.method) == (ONE_PASS, OBSERVED)
    assert cached.ppl == pytest.approx(own.ppl, rel=1e-5)
    assert (cached.affected_tokens, cached.held) == (own.affected_tokens, own.held)
    assert (cached.convention, cached.prune_after, cached.skip_layers) == ("a transformers cache", 8, ())
    assert cached.evictions is None
    assert cached.package.startswith("third, sources ")
    window, rounds = rows["third:Window", None], rows["third:Rounds", None]
    assert (window.prune_after, window.skip_layers, window.schedule) == (None, None, None)
    assert window.held == (8, 8, 8)
    assert window.affected_tokens == 24 - 1 - 9
    assert (rounds.affected_tokens, rounds.altered, rounds.vacuous) == (0, True, False)
    assert rounds.verdict not in ("vacuous", "uncompressed")
    assert "altered/23" in result.output
    title = "third:Window, a transformers cache made by the factory: reference on reference"
    assert title in " ".join(result.output.split())
    assert "None" not in result.output
    content = json.loads((third / "rows.json").read_text())["rows"]
    assert [row["keep_ratio"] for row in content if row["press"] == "third:Window"] == [1.0, None]
    page = (third / "page" / "report.html").read_text()
    assert "stepwise, observed" in page
    assert "third:Window: " in page
    assert "None" not in page
    compared = CliRunner().invoke(app, ["compare", "rows.json", "rows.json"], env={"COLUMNS": "200"})
    assert compared.exit_code == 0, compared.output
    assert f"third:Window, a transformers cache made by the factory, {DASH}" in compared.output
    again = CliRunner().invoke(app, ["report", "rows.json", "--to", "again"])
    assert again.exit_code == 0, again.output


def test_a_failure_costs_its_row_only(third: Path) -> None:
    """The sweep goes on, the exit code is 1, and ``--resume`` measures what is missing with the mended source."""
    options = ("--press", "knorm,third:Breaks,third:Window,random", "--json", "rows.json")
    result = measure(*options)
    assert result.exit_code == 1
    line = "reference on reference: third:Breaks failed in sample 1 at token 8: RuntimeError: expected 3 but got 4"
    assert f"missing: {line}\n" in result.output
    assert "finished results are kept, and --resume measures what is missing" in result.output
    found = read_results(third / "rows.json")
    assert [row.press for row in found.rows if row.keep_ratio != 1] == ["knorm", "third:Window", "random"]
    assert found.provenance["missing"] == line
    before = (third / "rows.json.unfinished").read_text().splitlines()
    mended = MODULE.replace("LATE = True", "LATE = False  # mended")
    (third / "third.py").write_text(mended)
    sys.modules.pop("third")
    result = measure(*options, "--resume")
    assert result.exit_code == 0, result.output
    found = read_results(third / "rows.json")
    names = ["knorm", "third:Breaks", "third:Window", "random"]
    assert [row.press for row in found.rows if row.keep_ratio != 1] == names
    assert "missing" not in found.provenance
    assert not (third / "rows.json.unfinished").exists()
    assert len(before) == 1 + 4  # the plan, the uncompressed row, and three others


@pytest.mark.usefixtures("third")
def test_nothing_is_measured_on_a_changed_model() -> None:
    """After a compressor that leaves the model changed nothing is measured, and all that is missing is named."""
    result = measure("--press", "knorm,third:changes,random", "--text", "reference")
    assert result.exit_code == 1
    what = "weight model.norm.weight has changed"
    assert f"missing: reference on reference: third:changes 0.5 left the model changed: {what}\n" in result.output
    assert "missing: reference on reference: random 0.5 was not measured on a model that was changed\n" in result.output


@pytest.mark.usefixtures("third")
def test_what_a_compressor_leaves_is_said_and_undone() -> None:
    """A compressor that leaves an attribute behind has a row that says so, and the next one is measured."""
    options = ("--press", "third:changes,random", "--keep-ratios", "0.75", "--json", "rows.json")
    result = measure(*options)
    assert result.exit_code == 0, result.output
    left = {row.press: row.left for row in read_results(Path("rows.json")).rows if row.keep_ratio != 1}
    assert left == {"third:changes": "module model.layers.1.self_attn has changed", "random": ""}
    assert "IT LEFT THE MODEL CHANGED, which was undone: module model.layers.1" in " ".join(result.output.split())


def _keys(name: str, shared: dict[str, Any] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = made(name, shared=shared)[1].key()
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: _keys("third:Window(size=9)"),
        lambda folder: _keys("third:Any_"),
        lambda folder: _after(folder / "third.py"),
        lambda folder: _after(folder / "helper_of_third.py"),
    ],
)
def test_a_result_belongs_to_the_factory_its_options_and_its_sources(
    change: Callable[[Path], dict[str, Any]], third: Path
) -> None:
    """The key of a result differs for other options, another factory, and other source files beside it."""
    (third / "helper_of_third.py").write_text("")
    with (third / "third.py").open("a") as file:
        file.write("\nimport helper_of_third\n")
    try:
        first = _keys("third:Window")
        assert first == _keys("third:Window")
        assert change(third) != first
    finally:
        sys.modules.pop("helper_of_third", None)


def _after(file: Path) -> dict[str, Any]:
    with file.open("a") as source:
        source.write("\n# A comment.\n")
    return _keys("third:Window")


@pytest.mark.usefixtures("third")
def test_a_compressor_of_the_prompt_gets_one() -> None:
    """As for presses, three quarters are the prompt if a compressor acts on the prompt only, as contexts usually do."""
    result = measure("--press", "third:prefill", "--json", "rows.json")
    assert result.exit_code == 0, result.output
    assert {row.prompt for row in read_results(Path("rows.json")).rows} == {18}


@pytest.mark.usefixtures("third")
def test_a_factory_makes_presses_at_each_ratio_or_at_none() -> None:
    """A factory that makes a press at one ratio and something else at another is refused."""
    (one,) = parse("third:halves")
    with pytest.raises(ValueError, match=r"a press at a ratio of 1 and a Cached at 0.5: it must make one at each"):
        make(one, [0.5, 1.0], {})
