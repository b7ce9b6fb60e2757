"""Sweeps under a launcher: real processes, of which one is killed."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pressgauge import cli
from pressgauge.bench.ranks import Lost, Ranks, join, launched
from pressgauge.cli import app
from support.prepared import launcher

SMALL = "--press knorm --no-random --keep-ratios 0.5 --tokens 40 --prune-after 16 --device cpu".split()
LONG = "--keep-ratios 0.9,0.8,0.7,0.6,0.5 --tokens 300 --samples 6 --prune-after 16 --device cpu".split()


def launch(count: int, *arguments: str) -> Any:
    """``torchrun`` with this many ranks of ``pressgauge``, as a group of processes."""
    return subprocess.Popen(
        [*launcher(count), "-m", "pressgauge", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "COLUMNS": "100"},
        start_new_session=True,
    )


def ranks(path: Path) -> list[int]:
    """Processes of the ranks of a sweep that writes to this file."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines() if str(path) in line]
    return [int(pid) for pid, command in lines if "torch.distributed.run" not in command]


def rows(path: Path) -> Any:
    return json.loads(path.read_text())["rows"]


def test_a_killed_rank_leaves_its_results_and_one_process_goes_on(tmp_path: Path) -> None:
    """Rank 0 names what is missing, the launcher fails, and the resumed file has the rows of one process."""
    path, whole = tmp_path / "rows.json", tmp_path / "whole.json"
    process = launch(2, "measure", *LONG, "--json", str(path))
    journals = [tmp_path / "rows.json.unfinished", tmp_path / "rows.json.unfinished.1"]
    deadline = time.monotonic() + 180
    while not all(file.exists() and len(file.read_bytes().splitlines()) >= 2 for file in journals):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(ranks(path)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode
    assert not path.exists()
    assert "missing: reference on reference: " in errors
    assert "finished results are kept, and --resume continues from them" in errors
    for options in (["--json", str(path), "--resume"], ["--json", str(whole)]):
        result = CliRunner().invoke(app, ["measure", *LONG, *options])
        assert result.exit_code == 0, result.stderr
    assert rows(path) == rows(whole)
    assert sorted(tmp_path.iterdir()) == [path, whole]


def test_samples_of_one_cell_are_shared_by_processes(tmp_path: Path) -> None:
    """Two ranks share the samples of a single cell, print once, and write the rows of one process."""
    path, whole = tmp_path / "rows.json", tmp_path / "whole.json"
    process = launch(2, "measure", *SMALL, "--samples", "2", "--json", str(path))
    printed, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert printed.count("knorm, budget, prune_after 16: reference on reference") == 1
    result = CliRunner().invoke(app, ["measure", *SMALL, "--samples", "2", "--json", str(whole)])
    assert result.exit_code == 0, result.stderr
    assert rows(path) == rows(whole)
    assert sorted(tmp_path.iterdir()) == [path, whole]


def test_one_process_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a launcher, or with one that starts one process, accelerate is not imported."""
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert join(cpu=True) == Ranks()
    assert Ranks().gather(7) == [7]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join(cpu=True) == Ranks()


def test_several_processes_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its absence is a sentence with the extra that has it."""
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, ["measure", *SMALL], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "needs accelerate, which is not installed: install the extra bench" in result.stderr


def test_a_rank_knows_whether_its_device_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of a machine share its CPU; a GPU of another number is another device."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    device = torch.device("cuda", 1)
    state = SimpleNamespace(process_index=1, num_processes=2, device=device)
    host = platform.node()
    others = {True: (host, "cpu"), False: (host, "cuda:0")}
    for cpu in (True, False):
        gathered: list[Any] = []

        def gather_object(value: list[Any], other: Any = others[cpu], gathered: list[Any] = gathered) -> list[Any]:
            gathered.extend(value)
            return [other, *value]

        utils = SimpleNamespace(gather_object=gather_object)
        monkeypatch.setitem(sys.modules, "accelerate", SimpleNamespace(PartialState=lambda **given: state, utils=utils))
        monkeypatch.setitem(sys.modules, "accelerate.utils", utils)
        assert join(cpu=cpu) == Ranks(1, 2, shared=cpu)


def test_a_rank_that_ended_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather_object(value: Any) -> Any:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setitem(sys.modules, "accelerate", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "accelerate.utils", SimpleNamespace(gather_object=gather_object))
    with pytest.raises(Lost, match="other ranks ended"):
        Ranks(0, 2).gather(1)


def test_only_rank_0_prints_an_error_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks wait to be ended; if they are not, the error is their own, and says so."""
    waited: list[float] = []
    monkeypatch.setattr(cli, "time", SimpleNamespace(sleep=waited.append))
    for rank, own in (("0", ""), ("1", " (rank 1)")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        result = CliRunner().invoke(app, ["measure", "--keep-ratios", "2"], env={"COLUMNS": "200"})
        assert result.exit_code == 2
        assert result.stderr == f"error: keep_ratio must be in (0, 1], got 2.0{own}\n"
    assert waited == [cli.PATIENCE]


@pytest.mark.parametrize(
    ("given", "found"), [({}, (0, 1)), ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)), ({"RANK": "x"}, (0, 1))]
)
def test_a_launcher_numbers_ranks(
    given: dict[str, str], found: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert launched() == found
