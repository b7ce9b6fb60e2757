"""Models whose layers are in main memory and on disk have the results of one device."""

import gc
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from pressgauge import H2OPress, KnormPress, Perplexity, Press, RandomPress, SnapKVPress, TOVAPress, perplexity
from pressgauge.bench.answering import answers
from pressgauge.bench.sweep import fingerprint
from pressgauge.cli import app
from pressgauge.models import interface, load, placed
from pressgauge.tasks import TASKS
from pressgauge.tasks.fitting import fitted
from pressgauge.texts import load_text

MAP = {
    "model.embed_tokens": "disk",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
PRESSES: list[Press] = [
    KnormPress(0.5, prune_after=16),
    RandomPress(0.5, prune_after=16),
    H2OPress(0.5, prune_after=16),
    TOVAPress(0.5, prune_after=16, schedule="prefill"),
    SnapKVPress(0.5, prune_after=16, recent=4),
]


@cache
def model(spread: bool) -> Any:
    return load("reference", dtype="float64", device_map=MAP if spread else None)


@cache
def ids() -> Tensor:
    return load_text("reference", model(False)[1], samples=2, tokens=50)


@pytest.fixture(scope="module", autouse=True)
def released() -> Iterator[None]:
    yield
    model.cache_clear()


def equal(one: Perplexity, other: Perplexity) -> None:
    assert (one.nll - other.nll).abs().max() < 1e-9
    assert all(map(torch.equal, one.evicted_at, other.evicted_at))
    assert (one.held, one.kv_bytes, one.evictions) == (other.held, other.kv_bytes, other.evictions)
    assert one.affected.equal(other.affected)


@pytest.mark.parametrize("method", ["onepass", "stepwise"])
@pytest.mark.parametrize("press", PRESSES, ids=lambda press: type(press).__name__)
def test_a_spread_model_has_the_perplexity_of_one_device(press: Press, method: Any) -> None:
    """NLL to 1e-9 in float64, evictions, held and bytes."""
    found, expected = (perplexity(model(spread)[0], ids(), press, 20, method) for spread in (True, False))
    assert expected.evictions
    equal(found, expected)


@pytest.mark.parametrize("attached", [True, False])
def test_a_spread_model_generates_what_one_device_does(attached: bool) -> None:
    """Attached, and with a plain cache."""
    press = KnormPress(0.5, prune_after=16)
    found = []
    for spread in (True, False):
        own: Any = model(spread)[0]
        options = {"max_new_tokens": 8, "do_sample": False}
        if attached:
            with press(own):
                found.append(own.generate(ids(), **options))
        else:
            cache = press.cache(own.config, unpadded=True)
            found.append(own.generate(ids(), **{interface.cache_argument(own): cache}, **options))
            assert cache.evictions
    assert found[0].equal(found[1])


def test_a_spread_model_answers_tasks() -> None:
    """Though its first weights are on disk."""
    own, tokenizer = model(True)
    assert own.device.type == "meta"
    prompts = fitted(TASKS["recall"], tokenizer, samples=1, tokens=100)
    assert answers(own, tokenizer, prompts, None) == answers(model(False)[0], tokenizer, prompts, None)


def check_digest() -> None:
    assert fingerprint(model(True)[0]) == fingerprint(model(False)[0])


def test_a_spread_model_has_the_digest_of_its_weights() -> None:
    """Those on disk included."""
    check_digest()


def test_a_digest_without_weights_on_disk_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    own = placed.weights

    def in_memory(model: Any) -> Iterator[tuple[str, Tensor]]:
        state = model.state_dict()
        yield from (one for one in own(model) if state[one[0]].device.type != "meta")

    monkeypatch.setattr(placed, "weights", in_memory)
    with pytest.raises(AssertionError):
        check_digest()


def test_devices_are_named() -> None:
    assert placed.where(model(True)[0], torch.device("cpu")) == "disk, cpu"
    assert placed.where(model(False)[0], torch.device("cpu")) == "cpu"


def test_the_folder_of_weights_is_deleted_with_the_model() -> None:
    own, _ = load("reference", device_map=MAP)
    folder = Path(getattr(own, placed._FOLDERS).name)
    assert folder.is_dir()
    del own
    gc.collect()
    assert not folder.exists()


SMALL = "measure --no-random --keep-ratios 0.5 --samples 1 --tokens 40 --prune-after 16 --device cpu".split()


def test_a_sweep_takes_all_devices(tmp_path: Path) -> None:
    """Its rows are those of one device, here the only one."""
    rows = []
    for more in ([], ["--device-map", "auto"]):
        path = tmp_path / "rows.json"
        result = CliRunner().invoke(app, [*SMALL, "--json", str(path), *more])
        assert result.exit_code == 0, result.stderr
        rows.append(json.loads(path.read_text())["rows"])
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device-map", "balanced"], "--device-map must be auto, got 'balanced'"),
        (["--device-map", "auto", "--timing"], "--timing measures the time and memory of one device, and --device-map"),
        (["--device-map", "auto", "--press", "transformers:DynamicCache"], "--device-map is for presses, got transf"),
    ],
)
def test_what_cannot_be_right_is_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*SMALL, *options])
    assert result.exit_code == 2
    assert message in result.stderr
