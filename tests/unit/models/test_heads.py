"""KV heads that processes share: two on the CPU have the results of one, and what cannot be right is refused."""

import inspect
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, LlamaConfig
from typer.testing import CliRunner

from pressgauge import KeyDiffPress, KnormPress, RandomPress, StreamingLLMPress, TOVAPress
from pressgauge.cli import app
from pressgauge.models import interface, load
from pressgauge.models.heads import Split, split_given_to, unsplit
from pressgauge.models.support import Support
from support.prepared import launcher

OPTIONS = (
    "measure --model reference --press knorm,keydiff,h2o,tova,snapkv(recent=4),streaming-llm --keep-ratios 0.5 --text "
    "reference --task recall --tokens 100 --samples 1 --prune-after 16 --device cpu --dtype float64"
).split()
EXACT = ("held", "kv_bytes", "evictions", "affected_tokens", "recalls", "weights_sha256", "parameters", "press")


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    """All presses, texts and tasks: NLL to 1e-9 in float64, and held, bytes, evictions and weights exactly."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    result = CliRunner().invoke(app, [*OPTIONS, "--json", str(one)])
    assert result.exit_code == 0, result.stderr
    started = [*launcher(2), "-m", "pressgauge"]
    options = [*OPTIONS, "--json", str(two), "--report", str(tmp_path / "page"), "--tensor-parallel", "2"]
    done = subprocess.run(
        [*started, *options], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    found, expected = (json.loads(path.read_text()) for path in (two, one))
    for kind in ("rows", "tasks"):
        assert len(found[kind]) == len(expected[kind]) > 0
        for own, other in zip(found[kind], expected[kind], strict=True):
            assert {name: own.get(name) for name in EXACT} == {name: other.get(name) for name in EXACT}
            sums = [torch.tensor(row.get("nll_sums", [0.0]), dtype=torch.float64) for row in (own, other)]
            assert (sums[0] - sums[1]).abs().max() < 1e-9 * 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "page", "two.json"]


def decoded(model: Any) -> dict[str, tuple[Tensor, int]]:
    """Logits of 40 tokens decoded singly by plain caches, and the bytes of these, by press."""
    ids = torch.arange(60)[None] * 7 % 50 + 5
    found = {}
    for kind in (KnormPress, RandomPress, KeyDiffPress, StreamingLLMPress):
        cache = kind(0.5, prune_after=8).cache(model.config)
        named = {interface.cache_argument(model): cache}
        with torch.no_grad():
            model(ids[:, :20], **named)
            logits = [model(ids[:, token, None], **named).logits for token in range(20, 60)]
        found[kind.__name__] = torch.cat(logits, dim=1), cache.nbytes
    return found


IMPORTS = """
import sys
import torch
from pressgauge import KeyDiffPress, KnormPress, RandomPress, StreamingLLMPress
from pressgauge.models import interface, load
from typing import Any
from torch import Tensor
"""
RUN = """
found = decoded(load("reference", dtype="float64", tensor_parallel=2)[0])
if torch.distributed.get_rank() == 0:
    torch.save(found, sys.argv[1])
"""


def test_a_plain_cache_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """Logits to 1e-9 in float64, and half of the bytes in each."""
    code = IMPORTS + inspect.getsource(decoded) + RUN
    started = [*launcher(2), "-c", code, str(tmp_path / "found.pt")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(started, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")
    for name, (logits, size) in decoded(load("reference", dtype="float64")[0]).items():
        own, part = found[name]
        assert (own - logits).abs().max() < 1e-9, name
        assert 2 * part == size


def given(press: Any, index: int, count: int = 2, total: int = 4) -> Any:
    return Split(index, count, total).given_to(press)


def check_heads() -> None:
    keys = torch.randn(1, 4, 9, 8)
    positions = torch.arange(9).expand(1, 4, 9)
    whole = RandomPress(0.5).score(keys, positions=positions, layer=1)
    parts = [
        given(RandomPress(0.5), index).score(keys[:, block], positions=positions[:, block], layer=1)
        for index, block in enumerate((slice(0, 2), slice(2, 4)))
    ]
    assert torch.cat(parts, dim=1).equal(whole)


def test_a_random_press_scores_a_head_by_its_index_in_the_model() -> None:
    """The scores of each process are its block of those of one."""
    check_heads()


def test_heads_counted_from_0_by_each_process_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Split, "first", lambda self, own: 0)
    with pytest.raises(AssertionError):
        check_heads()


def check_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(2, 4, 5, dtype=torch.float64)
    parts = values.split(2, dim=1)

    def add_the_other(summed: Tensor) -> None:
        summed += parts[1].sum(dim=1, keepdim=True)

    monkeypatch.setattr(torch.distributed, "all_reduce", add_the_other)
    assert torch.allclose(Split(0, 2, 4).mean(parts[0]), values.mean(dim=1, keepdim=True), atol=1e-15)


def test_a_mean_is_over_the_heads_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    check_mean(monkeypatch)


def test_a_mean_over_the_heads_of_one_process_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Split, "mean", lambda self, values: values.mean(dim=1, keepdim=True))
    with pytest.raises(AssertionError):
        check_mean(monkeypatch)


def test_the_heads_are_no_part_of_a_press() -> None:
    """A press with the heads of a process is equal to itself without."""
    press = TOVAPress(0.5, prune_after=16)
    other = given(press, 1)
    assert other == press
    assert hash(other) == hash(press)
    assert repr(other) == repr(press)
    assert split_given_to(other) == Split(1, 2, 4)
    assert split_given_to(press) is None


def test_numbers_and_tables_are_those_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.ones(1, 2, 3)

    def gathered(found: list[Any], own: Any) -> None:
        found[:] = [own, (2 * table,) if isinstance(own, tuple) else own + 1]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
    assert Split(0, 2, 4).total(7) == 15
    (joined,) = Split(0, 2, 4).joined((table,))
    assert joined.equal(torch.cat([table, 2 * table], dim=1))


def test_a_layer_with_other_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="a layer has 4 KV heads on each of 2 processes, and 4 in all"):
        Split(0, 2, 4).first(4)


@pytest.mark.parametrize(
    ("config", "count", "reason"),
    [
        (LlamaConfig(num_attention_heads=8, num_key_value_heads=4), 2, None),
        (LlamaConfig(num_attention_heads=8, num_key_value_heads=4), 1, None),
        (LlamaConfig(num_attention_heads=8, num_key_value_heads=4), 3, "has 4 KV heads, which 3 processes cannot"),
        (GPT2Config(), 2, "has no plan in transformers by which processes share its KV heads"),
    ],
)
def test_what_processes_cannot_share_is_named(config: Any, count: int, reason: str | None) -> None:
    found = unsplit(config, count)
    assert found is None if reason is None else found is not None and found.startswith(reason)


class Mine(KnormPress):
    """A press of a user."""


def test_a_press_of_ones_own_is_refused() -> None:
    """It may score a head by all of them."""
    support = Support("Model", 2, None, {}, split=Split(0, 2, 4))
    assert split_given_to(support.resolve(KnormPress(0.5))) == Split(0, 2, 4)
    with pytest.raises(ValueError, match="shared by 2 processes, and whether Mine scores each head on its own"):
        support.resolve(Mine(0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--tensor-parallel", "2"],
            "--tensor-parallel takes 2 processes that a launcher starts, got 1: start as many",
        ),
        (["--tensor-parallel", "0"], "--tensor-parallel must be at least 1, got 0"),
        (["--tensor-parallel", "2", "--device-map", "auto"], "are two ways to place a model, got both"),
    ],
)
def test_what_cannot_be_right_is_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*OPTIONS, *options])
    assert result.exit_code == 2
    assert message in result.stderr
