"""Plans of sweeps: what is measured, and what determines the results."""

import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import torch

from pressgauge.bench.cells import Cell
from pressgauge.bench.compressors import Compressor
from pressgauge.bench.metrics import Metric
from pressgauge.bench.provenance import versions
from pressgauge.bench.quantities import BANDS
from pressgauge.presses.base import Press
from pressgauge.timing import PAIRS

MOST_NEW_TOKENS = 32
"""Maximum number of tokens generated for timing, which is a quarter of a sample's."""


@dataclass(frozen=True)
class TaskPlan:
    """The part of a sweep that measures tasks.

    Attributes:
        tasks: names, as in ``TASKS``.
        presses: by name, for each schedule one press per ``keep_ratio``, the first with 1.
        samples: samples of each task.
        tokens: most tokens of a prompt and its answer.
    """

    tasks: tuple[str, ...] = ()
    presses: Mapping[str, tuple[tuple[Press, ...], ...]] | None = None
    samples: int = 1
    tokens: int = 2

    @property
    def lines(self) -> list[tuple[str, tuple[Press, ...]]]:
        """Presses of each name and schedule, with the name."""
        return [(name, line) for name, lines in (self.presses or {}).items() for line in lines]

    @property
    def steps(self) -> int:
        """Measurements with one model."""
        return len(self.tasks) * (1 + sum(len(line) - 1 for _, line in self.lines))


@dataclass(frozen=True)
class Plan:
    """Configuration of a sweep.

    Attributes:
        presses: by name, one press or other compressor per ``keep_ratio``, the first with 1.
        models, texts: names, as in ``load`` and ``load_text``.
        samples, tokens: number of samples of each text, and tokens per sample.
        prompt: tokens of the prompt.
        device, dtype: device and dtype of the models.
        timing: whether to measure times.
        trust_remote_code: whether to run code that comes with a model.
        bands: thresholds of verdicts, as relative changes in perplexity, ascending.
        metrics: the user's own metrics.
        of_tasks: tasks and the presses under which they are measured.
        device_map: ``auto`` if layers of a model may be on several devices; else empty.
        tensor_parallel: number of processes that share a model; 1 if none do.
    """

    presses: dict[str, tuple[Press, ...] | tuple[Compressor, ...]]
    models: tuple[str, ...]
    texts: tuple[str, ...]
    samples: int
    tokens: int
    prompt: int
    device: torch.device
    dtype: str
    timing: bool = False
    trust_remote_code: bool = False
    bands: tuple[float, ...] = BANDS
    metrics: tuple[Metric, ...] = ()
    of_tasks: TaskPlan = field(default_factory=TaskPlan)
    device_map: str = ""
    tensor_parallel: int = 1

    def timed(self, press: Press | None) -> tuple[int, int]:
        """Prompt length and number of new tokens for timing a press."""
        new = max(2, min(MOST_NEW_TOKENS, self.tokens // 4))
        # With schedule "prefill", time the eviction after the same prompt as in the perplexity run.
        least = self.prompt if press is not None and press.schedule == "prefill" else 1
        return max(least, self.tokens - new), new

    def check_spread(self, ranks: int) -> None:
        """Raise ``ValueError`` if a model on several devices cannot be measured as planned.

        Args:
            ranks: number of processes.
        """
        if not self.device_map and self.tensor_parallel == 1:
            return
        if self.device_map not in ("", "auto"):
            raise ValueError(f"--device-map must be auto, got {self.device_map!r}")
        if self.device_map and self.tensor_parallel > 1:
            raise ValueError(
                "--device-map and --tensor-parallel are two ways to place a model, got both: leave one of them out"
            )
        option, means = ("--device-map", "all devices for one process")
        if self.tensor_parallel > 1:
            option, means = "--tensor-parallel", f"{self.tensor_parallel} processes that a launcher starts"
        if ranks != self.tensor_parallel:
            raise ValueError(f"{option} takes {means}, got {ranks}: start as many, or leave it out")
        if self.timing:
            raise ValueError(
                f"--timing measures the time and memory of one device, and {option} takes several: leave one of them "
                "out"
            )
        if others := [name for name, those in self.presses.items() if isinstance(those[0], Compressor)]:
            raise ValueError(
                f"{option} is for presses, got {others[0]}: what a third-party compressor does with a part of a model "
                "cannot be told"
            )

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All measurements in order, of each text and task first the uncompressed one."""
        found = []
        for model in self.models:
            for text in self.texts:
                found.append(Cell(model, text, ""))
                for line, (name, presses) in enumerate(self.presses.items()):
                    found += [Cell(model, text, "", name, "", press.keep_ratio, line) for press in presses[1:]]
            for task in self.of_tasks.tasks:
                found.append(Cell(model, "", task))
                for line, (name, own) in enumerate(self.of_tasks.lines):
                    found += [Cell(model, "", task, name, one.schedule, one.keep_ratio, line) for one in own[1:]]
        return tuple(found)

    @property
    def measurements(self) -> int:
        """Number of measured rows; the uncompressed one of a text or a task is shared by all presses."""
        of_text = 1 + sum(len(presses) - 1 for presses in self.presses.values())
        return len(self.models) * (len(self.texts) * of_text + self.of_tasks.steps)

    @property
    def steps_per_row(self) -> int:
        """Number of steps of each measured row, reported to ``advance``."""
        return 1 + (2 * (PAIRS + 1) if self.timing else 0)

    @property
    def steps(self) -> int:
        """Total number of steps reported to ``advance``."""
        return self.measurements * self.steps_per_row

    def as_dict(self) -> dict[str, Any]:
        """Everything that determines the results and is known before models are loaded, for a journal."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "bands"}
        return own | {
            "presses": {
                name: {
                    str(press.keep_ratio): press.asked() if isinstance(press, Compressor) else press for press in them
                }
                for name, them in self.presses.items()
            },
            "device": f"{self.device} ({device_name(self.device)})",
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def provenance(self) -> dict[str, str]:
        """Provenance of the results, for a report."""
        return {
            **versions(),
            "device": f"{self.device} ({device_name(self.device)}), {torch.get_num_threads()} threads",
            "dtype": self.dtype,
            "samples": f"{self.samples} of {self.tokens} tokens, of which {self.prompt} are fed in one pass"
            if self.texts
            else f"{self.samples} of each task, up to {self.tokens} tokens each",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            **({"metrics": ", ".join(metric.reference for metric in self.metrics)} if self.metrics else {}),
            # A resumed sweep has the results of a whole one.
            "command": shlex.join(["pressgauge", *(one for one in sys.argv[1:] if one != "--resume")]),
        }


def timed_presses(presses: tuple[Press, ...] | tuple[Compressor, ...]) -> list[Press]:
    """Those whose times can be taken: not third-party compressors."""
    return [press for press in presses if isinstance(press, Press)]


def device_name(device: torch.device) -> str:
    """Hardware name of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
