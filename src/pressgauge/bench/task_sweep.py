"""Sweeps over tasks: answers of each model under each press, keyed by everything that determines a result."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pressgauge.arguments import check_context
from pressgauge.attach import meet
from pressgauge.bench.answering import answers
from pressgauge.bench.cells import Cell
from pressgauge.bench.journal import Journal, digest
from pressgauge.bench.merging import Report, task_row
from pressgauge.bench.parts import Part, part_key
from pressgauge.bench.plan import TaskPlan
from pressgauge.bench.provenance import versions
from pressgauge.bench.row import Settings
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
            if rest and rest[-1].spares(shortest):
                reason = f"with prune_after={press.prune_after}: give more --tokens or a smaller --prune-after"
                if press.has_own_target:
                    reason = f"all of which {type(press).__name__}.target retains: give more --tokens"
                raise ValueError(f"a press evicts after the prompt, and nothing from one of {shortest} tokens {reason}")
        found[name] = prompts
    return found


def measure_tasks(
    plan: TaskPlan,
    share: Mapping[int, tuple[Cell, range]],
    prompts: Mapping[str, Prompts],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: TaskSource,
    hardware: str,
    journal: Journal | None,
    report: Report,
    advance: Callable[[str, int], None],
    resume: Callable[[int], None] = lambda rows: None,
) -> None:
    """Measure samples of cells of tasks with one model.

    Args:
        plan: the plan.
        share: cells and samples of them by index.
        prompts: result of ``prepare_tasks``.
        model, tokenizer: the model.
        source: name of the model, and where it is.
        hardware: name of the device.
        journal: store of finished results, which are not measured again.
        report: what the results are added to.
        advance: called with a description of the current measurement, and the number of rows done since the last call.
        resume: called with the number of rows that the next call of ``advance`` counts and the journal had.

    Raises:
        ValueError: if a press does not support the model.
    """
    lines = [(name, tuple(meet(press, model)[0] for press in line)) for name, line in plan.lines]
    for number, (_, line) in enumerate(lines):
        report.settings[source.model, True, number] = Settings.of(line[0])
    inputs = {task: _input(task, plan, prompts[task]) for task in plan.tasks}
    if journal is not None:
        for given in inputs.values():
            journal.check_task(source, given)
    bases: dict[str, TaskRow] = {}

    def part(cell: Cell, press: Press | None, sample: int) -> Part:
        given = prompts[cell.task]
        result = answers(model, tokenizer, replace(given, prompts=(given.prompts[sample],)), press)
        settings = Settings.of(press or lines[0][1][0])
        return Part(cell.press, settings, (source, inputs[cell.task]), sample, result)

    def whole(cell: Cell, press: Press | None, known: Mapping[int, Part]) -> TaskRow:
        base = None if press is None else base_of(cell)
        if known:
            return task_row([known.get(at) or part(cell, press, at) for at in range(plan.samples)], base)
        result = answers(model, tokenizer, prompts[cell.task], press)
        return make_task_row(cell.press, press or lines[0][1][0], source, inputs[cell.task], result, base)

    def base_of(cell: Cell) -> TaskRow:
        """The uncompressed row of a task; measured for the comparison if it is another rank's."""
        if cell.task not in bases:
            key = _key(None, source, inputs[cell.task], hardware) if journal is not None else ""
            known = journal.find_task(key) if journal is not None else None
            bases[cell.task] = known or whole(Cell(cell.model, "", cell.task), None, {})
        return bases[cell.task]

    for index, (cell, samples) in share.items():
        press = None
        if cell.line >= 0:
            press = next(one for one in lines[cell.line][1][1:] if one.keep_ratio == cell.ratio)
        advance(str(cell), 0)
        key = _key(press, source, inputs[cell.task], hardware) if journal is not None else ""
        row = journal.find_task(key) if journal is not None else None
        if row is not None:
            resume(1)
        elif len(samples) < plan.samples:
            for sample in samples:
                own = journal.find_part(part_key(key, sample)) if journal is not None else None
                if own is None:
                    own = part(cell, press, sample)
                    if journal is not None:
                        journal.add(part_key(key, sample), own)
                report.parts.setdefault(index, {})[sample] = own
        else:
            stored = {} if journal is None else {at: journal.find_part(part_key(key, at)) for at in samples}
            row = whole(cell, press, {at: own for at, own in stored.items() if own is not None})
            if journal is not None:
                journal.add(key, row)
        if row is not None:
            if press is None:
                bases[cell.task] = row
            if 0 in samples:
                report.rows[index] = row
        advance(str(cell), 1)


def _input(task: str, plan: TaskPlan, prompts: Prompts) -> TaskInput:
    lengths = tuple(len(prompt.ids) for prompt in prompts.prompts)
    content = digest([[prompt.ids, prompt.sample.hidden] for prompt in prompts.prompts])
    return TaskInput(task, plan.samples, plan.tokens, lengths, prompts.answer_tokens, content)


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
