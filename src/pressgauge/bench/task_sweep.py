"""Sweeps over tasks: answers of each model under each press, keyed by everything that determines a result."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pressgauge.arguments import check_context
from pressgauge.attach import meet
from pressgauge.bench.answering import answers
from pressgauge.bench.journal import Journal, digest
from pressgauge.bench.provenance import versions
from pressgauge.bench.task_row import TaskInput, TaskRow, TaskSource, make_task_row
from pressgauge.models import load_parts
from pressgauge.models.support import of_config
from pressgauge.presses.base import Press
from pressgauge.rules import Schedule
from pressgauge.tasks import TASKS
from pressgauge.tasks.fitting import Prompts, fitted

TASK_SCHEDULES: tuple[Schedule, ...] = ("prefill", "budget")
"""Schedules under which each press is measured, if none is given."""
MOST_SAMPLES = 10_000
"""Samples of a task, which could go on without end."""


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


def under_schedules(line: tuple[Press, ...], *, given: bool) -> tuple[tuple[Press, ...], ...]:
    """A press at each ratio, under its own schedule if one was given, else under each of ``TASK_SCHEDULES``."""
    if given:
        return (line,)
    return tuple(tuple(replace(press, schedule=schedule) for press in line) for schedule in TASK_SCHEDULES)


def prepare_tasks(plan: TaskPlan, model: str, *, trust_remote_code: bool = False) -> dict[str, Prompts]:
    """The prompts of each task for a model, by task, made without loading its weights.

    Raises:
        ValueError: if there are too many samples, a task needs more tokens, the tokenizer cannot encode it, or nothing
            would ever be evicted.
    """
    if not plan.tasks:
        return {}
    if plan.samples > MOST_SAMPLES:
        raise ValueError(f"--samples must be at most {MOST_SAMPLES} for a task, got {plan.samples}: give fewer")
    config, tokenizer = load_parts(model, trust_remote_code=trust_remote_code)
    check_context(config, plan.tokens, "--tokens")
    found = {}
    for name in plan.tasks:
        try:
            prompts = fitted(TASKS[name], tokenizer, samples=plan.samples, tokens=plan.tokens)
        except ValueError as error:
            raise ValueError(f"{model}: {error}") from error
        # The last token of a prompt is fed after the eviction.
        shortest = min(len(prompt.ids) for prompt in prompts.prompts) - 1
        for _, (press, *rest) in plan.lines:
            of_config(config).resolve(press)
            if rest and shortest <= press.prune_after:
                raise ValueError(
                    f"a press evicts after the prompt, and nothing from one of {shortest} tokens with "
                    f"prune_after={press.prune_after}: give more --tokens or a smaller --prune-after"
                )
        found[name] = prompts
    return found


def run_tasks(
    plan: TaskPlan,
    prompts: Mapping[str, Prompts],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: TaskSource,
    hardware: str,
    journal: Journal | None,
    advance: Callable[[str, int], None],
    resume: Callable[[int], None] = lambda rows: None,
) -> list[TaskRow]:
    """Measure all tasks with one model.

    Args:
        plan: the plan.
        prompts: result of ``prepare_tasks``.
        model, tokenizer: the model.
        source: name of the model, and where it is.
        hardware: name of the device.
        journal: store of finished results, which are not measured again.
        advance: called with a description of the current measurement, and the number of rows done since the last call.
        resume: called with the number of rows that the next call of ``advance`` counts and the journal had.

    Raises:
        ValueError: if a press does not support the model.
    """
    lines = [(name, tuple(meet(press, model)[0] for press in line)) for name, line in plan.lines]
    rows = []
    for task in plan.tasks:
        given = _input(task, plan, prompts[task])
        if journal is not None:
            journal.check_task(source, given)

        def row(name: str, press: Press | None, base: TaskRow | None, given: TaskInput = given) -> TaskRow:
            what = f"{source.model}, task {given.task}: {name}"
            what += "" if press is None else f" {press.schedule} {press.keep_ratio:g}"
            advance(what, 0)
            key = _key(press, source, given, hardware) if journal is not None else ""
            known = journal.find_task(key) if journal is not None else None
            if known is None:
                result = answers(model, tokenizer, prompts[given.task], press)
                known = make_task_row(name, press or lines[0][1][0], source, given, result, base)
                if journal is not None:
                    journal.add(key, known)
            else:
                resume(1)
            advance(what, 1)
            return known

        base = row("uncompressed", None, None)
        for name, line in lines:
            rows.append(_renamed(base, name, line[0]))
            rows += [row(name, press, base) for press in line[1:]]
    return rows


def _input(task: str, plan: TaskPlan, prompts: Prompts) -> TaskInput:
    lengths = tuple(len(prompt.ids) for prompt in prompts.prompts)
    content = digest([[prompt.ids, prompt.sample.hidden] for prompt in prompts.prompts])
    return TaskInput(task, plan.samples, plan.tokens, lengths, prompts.answer_tokens, content)


def _renamed(base: TaskRow, name: str, press: Press) -> TaskRow:
    """The uncompressed row, relabelled as the row of a press with ``keep_ratio`` 1."""
    return replace(base, press=name, schedule=press.schedule, prune_after=press.prune_after, skip_layers=press.skipped)


def _key(press: Press | None, source: TaskSource, given: TaskInput, hardware: str) -> str:
    """Journal key of a result, over everything that it may depend on."""
    return digest(
        {
            "press": None if press is None else {"class": type(press).__name__, **asdict(press)},
            "source": asdict(source),
            "task": asdict(given),
            "device": hardware,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
    )
