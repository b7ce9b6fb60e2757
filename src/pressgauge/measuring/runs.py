"""Runs of a model in a record of passes, and the right figures of them: sums of known times, and counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from pressgauge.measuring.benchmarks import Call, Declares
from pressgauge.measuring.clock import SECOND, Pass


@dataclass(frozen=True)
class Run:
    """The passes that fed one cache.

    Attributes:
        prompt: those that fed the prompt.
        steps: those that fed what had been generated.
    """

    prompt: tuple[Pass, ...]
    steps: tuple[Pass, ...]

    @property
    def passes(self) -> tuple[Pass, ...]:
        """All of them."""
        return self.prompt + self.steps

    @property
    def compressed(self) -> bool:
        """Whether a pass attended to a cache from which something was missing."""
        return any(one.compressed for one in self.passes)

    @property
    def cold(self) -> int:
        """Nanoseconds beyond those of a warm run."""
        return sum(one.cold for one in self.passes)

    @property
    def fed(self) -> int:
        """Length of the prompt."""
        return sum(one.fed for one in self.prompt)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self.passes[0].rows

    @property
    def tokens(self) -> int:
        """Tokens generated in a row: every step gives one, and the prompt the first."""
        return len(self.steps) + 1


def runs_of(passes: Sequence[Pass], prompt_tokens: int) -> list[Run]:
    """The runs of a record, by their first passes. A cache made of another one continues the prompt of that one."""
    found: list[Run] = []
    for number in dict.fromkeys(one.run for one in passes):
        run = _split([one for one in passes if one.run == number], prompt_tokens)
        seen = run.passes[0].seen
        prompts = [other.prompt for other in reversed(found) if seen and other.fed == seen]
        found.append(Run(prompts[0], run.passes) if prompts else run)
    return found


def _split(passes: Sequence[Pass], prompt_tokens: int) -> Run:
    fed = 0
    prompt: list[Pass] = []
    for one in passes:
        # A prompt without BOS is one token shorter.
        if fed >= prompt_tokens or (fed == prompt_tokens - 1 and prompt[-1].fed > 1):
            break
        prompt.append(one)
        fed += one.fed
    return Run(tuple(prompt), tuple(passes[len(prompt) :]))


def whole(run: Run, prompt_tokens: int) -> bool:
    """Whether a run has fed the prompt and nothing else at first."""
    return run.fed in (prompt_tokens, prompt_tokens - 1)


def measured(call: Call, declares: Declares, compressed: bool = True) -> Run | None:
    """The run that the figures of a call should be of: the last that generated what was asked for.

    Args:
        call: the call.
        declares: declarations of the benchmark.
        compressed: False for the uncompressed run to compare it with. If no run is compressed, all are of one kind.
    """
    runs = [run for run in runs_of(call.passes, declares.prompt_tokens) if whole(run, declares.prompt_tokens)]

    def fits(run: Run) -> tuple[int, int]:
        wanted = (call.ask.generated, call.ask.new_tokens)
        return -min(abs(run.tokens - tokens) for tokens in wanted), run.tokens

    best = max(map(fits, runs), default=None)
    alike = [run for run in runs if fits(run) == best]
    arm = [run for run in alike if run.compressed is compressed]
    if not arm and (compressed or call.ask.keep_ratio == 1):
        arm = alike
    return arm[-1] if arm else None


Cost = Callable[[Pass], int]


def warm(one: Pass) -> int:
    """Nanoseconds of a pass when warm."""
    return one.warm


def taken(one: Pass) -> int:
    """Nanoseconds of a pass."""
    return one.taken


def right(figure: str, run: Run, call: Call, declares: Declares, cost: Cost = warm) -> list[float]:
    """Right values of a figure of a run, in seconds or tokens per second; none if there was nothing to time."""
    prompt, steps = sum(map(cost, run.prompt)), [cost(one) for one in run.steps]
    generation = prompt + sum(steps)
    # A loop may feed the last token too, and ignore what follows it.
    counts = {run.tokens, call.ask.generated} if len(steps) == call.ask.generated else {run.tokens}
    times: list[float] = []
    if figure == "ttft":
        times = [prompt + steps[0]] if declares.first_token == "decode" and steps else [prompt]
    elif figure == "tpot" and declares.tpot == "all":
        times = [generation / count for count in counts]
    elif figure == "tpot":
        times = [fmean(steps), median(steps)] if steps else []
    elif figure == "latency":
        times = [sum(steps) if declares.latency == "decode" else generation]
    elif declares.throughput == "decode":
        times = [sum(steps) / run.rows / len(steps)] if steps else []
    else:
        more = run.fed if declares.throughput == "prompt" else 0
        times = [generation / run.rows / (count + more) for count in counts]
    seconds = [time / SECOND for time in times]
    return [1 / one for one in seconds] if figure == "throughput" else seconds
