"""lm-evaluation-harness with a compressed cache: ``python -m pressgauge.lm_eval --model pressgauge ...``.

lm-eval has no plugins: its command knows the model ``pressgauge`` once this module is imported. Run as a program, this
module is that command. Importing it registers the model for ``lm_eval.simple_evaluate``.

lm-eval scores a continuation by one forward pass over context and continuation. No query of such a pass meets an
eviction, so under ``with press(model):`` its model ``hf`` reports the log-likelihoods of the uncompressed cache.
"""

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from pressgauge.attach import meet
from pressgauge.cache import PressedCache
from pressgauge.history import NEVER, first_evictions
from pressgauge.likelihood import perplexity
from pressgauge.models import interface, support
from pressgauge.onepass import OnePass
from pressgauge.presses import PRESSES
from pressgauge.presses.base import Press

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM, eval_logger
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"pressgauge.lm_eval needs {missing.name}, which is not installed: install the extra lm-eval, "
        "python -m pip install 'path/to/pressgauge[lm-eval]'",
        name=missing.name,
    ) from None

NONE = "none"
"""Name of the press that leaves the cache uncompressed."""
_REFUSED = {
    "mixed_precision_dtype": "is not supported, since only a part of attention would run in it: give dtype",
    "tp_plan": "is not supported, since it splits the heads that a press ranks over processes: leave it out",
}
"""Arguments of lm-eval's own model that a press does not support, and why."""
_RESPONSES_OF = "pressgauge"
"""Key of the press in a file of cached responses. lm-eval's own keys are hexadecimal."""


def make_press(name: str | None, options: dict[str, Any]) -> Press | None:
    """The press of these model arguments; None for ``none``.

    Args:
        name: a name in ``PRESSES``, or ``none``. lm-eval reads ``none`` in a string of arguments as None.
        options: arguments of the model. The fields of the press are removed.

    Raises:
        TypeError, ValueError: for a press that does not exist, without a keep ratio, or with options out of range.
    """
    if name in (None, NONE):
        own = [each.name for each in fields(Press) if each.name in options]
        if own:
            raise ValueError(
                f"press=none has no {own[0]}, got {own[0]}={options[own[0]]!r}: leave it out, or name a press"
            )
        return None
    if name not in PRESSES:
        raise ValueError(f"press must be one of {', '.join(PRESSES)}, or none for no compression, got {name!r}")
    given = {each.name: options.pop(each.name) for each in fields(PRESSES[name]) if each.name in options}
    if "keep_ratio" not in given:
        raise ValueError(f"press={name} needs the fraction of the tokens to retain, got none: give keep_ratio=0.5")
    if isinstance(given.get("skip_layers"), int):
        # The command cannot tell one layer from a number.
        given["skip_layers"] = (given["skip_layers"],)
    return PRESSES[name](**given)


def count_affected(prompt: int, answer: int, first: int) -> int:
    """Number of tokens of an answer whose query came after a first eviction.

    Args:
        prompt: tokens fed in one pass. The last of them is the query that predicts the first token of the answer.
        answer: tokens of the answer. Its last token is not fed.
        first: columns fed by the end of the pass that first evicted, at least ``prompt``.
    """
    return max(0, prompt + answer - 1 - first)


@register_model("pressgauge")
class PressLM(HFLM):  # type: ignore[misc]
    """lm-eval's Hugging Face model, evaluated with a compressed cache.

    Tokenization, truncation, batches, chat templates and the cache of responses are those of ``lm_eval --model hf``.

    - Log-likelihood: the context is the prompt, one pass. The tokens of the continuation are fed singly, and each is
      scored by the query before it, which meets the compressed cache. The first is scored by the prompt's own pass,
      before the press evicts. All of it is computed in one pass, see ``pressgauge.onepass``.
    - Rolling log-likelihood: the same for each window of lm-eval. The context of a window is the prefix token; for the
      last window of a long text, it is the end of the window before.
    - Generation: ``model.generate`` with the press attached; the prompt is the context.

    A token is *affected* if its query came after a first eviction. A request without affected tokens is *vacuous*. The
    results name the press, and count requests and tokens per task.

    Args:
        pretrained: a folder, a name on the hub, or a model.
        press: a name in ``pressgauge.presses.PRESSES``, or ``none`` for an uncompressed cache.
        batch_size: number of requests in a batch. ``auto`` is not supported: it would depend on the press and on the
            length of the prompt.
        **kwargs: the fields of the press, ``keep_ratio`` at least, and the arguments of lm-eval's ``hf``.

    Raises:
        TypeError: for a field of the press of the wrong type.
        ValueError: for a field of the press out of range, an argument that is not supported, or a model that the press
            or the evaluation in one pass does not support.
    """

    def __init__(self, pretrained: Any, press: str | None = "", batch_size: int | str = 1, **kwargs: Any) -> None:
        chosen = make_press(press, kwargs)
        for name, why in _REFUSED.items():
            if kwargs.get(name):
                raise ValueError(f"{name} {why}, got {kwargs[name]!r}")
        if str(batch_size).startswith("auto"):
            raise ValueError(f"batch_size must be a number under a press, got {batch_size!r}: give one, such as 8")
        super().__init__(pretrained, batch_size=batch_size, **kwargs)
        # Eight tokens, for a model that one pass does not support.
        perplexity(self.model, torch.zeros((1, 8), dtype=torch.long, device=self.device))
        self.press_name = press or NONE
        self.press, self._support = chosen, support.of_config(self.model.config)
        if chosen is not None:
            self.press, self._support = meet(chosen, self.model)
        self.requests: dict[str, dict[str, int]] = {}
        self._prompt = 1
        self._first = NEVER
        self._counts: list[tuple[int, int]] = []
        """Tokens and affected tokens of each request of a task, as far as it was evaluated."""

    def _get_backend(self, *args: Any, **kwargs: Any) -> None:
        super()._get_backend(*args, **kwargs)
        if self.backend != "causal":
            raise ValueError(
                f"pretrained must be a causal model, got one with the backend {self.backend!r}: use lm-eval's own "
                "model hf"
            )

    def _options(self) -> dict[str, Any]:
        """The press and all its fields."""
        return {"press": self.press_name, **({} if self.press is None else asdict(self.press))}

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take lm-eval's file of cached responses, whose keys name the request only.

        Raises:
            ValueError: if the file has responses of another press.
        """
        super().set_cache_hook(cache_hook)
        stored, own = cache_hook.dbdict, json.dumps(self._options(), default=str)
        if stored is None:
            return
        if len(stored) and (other := stored.get(_RESPONSES_OF, "another model")) != own:
            raise ValueError(f"use_cache must have responses of {own}, got a file of {other}: give another file")
        stored[_RESPONSES_OF] = own

    def get_model_info(self) -> dict[str, Any]:
        """Entries of ``config`` in the results: under ``pressgauge`` the press, its fields, and the counts."""
        info: dict[str, Any] = super().get_model_info()
        return info | {"pressgauge": self._options() | {"requests": self.requests}}

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would generate it."""
        return self._by_task(super().loglikelihood, requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text."""
        return self._by_task(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuation of each prompt, up to a stop sequence."""
        return self._by_task(super().generate_until, requests, disable_tqdm)

    def _by_task(self, run: Callable[..., list[Any]], requests: Sequence[Any], disable_tqdm: bool) -> list[Any]:
        """Run the requests of one task after another, and count those that are vacuous."""
        tasks: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            tasks[request.task_name or ""].append(index)
        answers: dict[int, Any] = {}
        for task, indices in tasks.items():
            self._counts = []
            found = run([requests[index] for index in indices], disable_tqdm=disable_tqdm)
            answers.update(zip(indices, found, strict=True))
            if self.press is not None and self.press.keep_ratio < 1:
                self._report(task, self.press)
        return [answers[index] for index in range(len(requests))]

    def _report(self, task: str, press: Press) -> None:
        vacuous = sum(not affected for _, affected in self._counts)
        self.requests[task] = {
            "requests": len(self._counts),
            "vacuous": vacuous,
            "tokens": sum(tokens for tokens, _ in self._counts),
            "affected_tokens": sum(affected for _, affected in self._counts),
        }
        if vacuous:
            eval_logger.warning(
                f"{task}: {vacuous} of {len(self._counts)} requests are vacuous: none of their tokens was predicted "
                "after an eviction, so their result is that of the uncompressed cache. The first token of an answer is "
                "predicted by the prompt's own pass, before the press evicts: use a task with longer answers. "
                + (
                    "Or use longer contexts."
                    if press.has_own_target
                    else f"A layer with {press.prune_after} entries or fewer evicts nothing: use longer contexts, or a "
                    "smaller prune_after"
                )
            )

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Score together what has contexts of equal length, since ``_model_call`` is passed tokens only."""
        groups: dict[int, list[int]] = defaultdict(list)
        for index, (_, context, continuation) in enumerate(requests):
            # lm-eval truncates contexts on the left. The last token is not fed.
            beyond = max(0, len(context) + len(continuation) - self.max_length - 1)
            groups[len(context) - beyond].append(index)
        answers: dict[int, tuple[float, bool]] = {}
        counts: dict[int, tuple[int, int]] = {}
        for prompt in track(
            sorted(groups, reverse=True), "scoring", disable=disable_tqdm or self.rank != 0, transient=True
        ):
            group = groups[prompt]
            self._prompt, self._first = prompt, NEVER
            found = super()._loglikelihood_tokens(
                [requests[index] for index in group], disable_tqdm=True, override_bs=override_bs
            )
            answers.update(zip(group, found, strict=True))
            for index in group:
                tokens = len(requests[index][2])
                # The number of tokens fed decides when a press evicts, so all rows of a group do so at the same time.
                counts[index] = tokens, count_affected(prompt, tokens, self._first)
        self._prompt = 1
        self._counts += [counts[index] for index in range(len(requests))]
        return [answers[index] for index in range(len(requests))]

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits ``[B, T, V]`` of decoding ``inps`` ``[B, T]`` with the press, the prompt in one pass.

        lm-eval pads on the right. No query of a row's own tokens attends to that padding.
        """
        onepass = OnePass(self.press, self._support, self._prompt)
        with torch.no_grad():
            logits = onepass.logits(self.model, inps)
        self._first = min(self._first, int(first_evictions(onepass.evicted_at.values()).min()))
        return logits

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        """Generate after ``context`` ``[B, T]``, padded on the left, with the press attached."""
        if self.press is None:
            tokens: Tensor = super()._model_generate(context, max_length, stop, **generation_kwargs)
            return tokens
        prompt = context.shape[1]
        cache = PressedCache(self.press, self.model.config, prompt_length=prompt)
        named = {interface.cache_argument(self.model): cache}
        with self.press(self.model):
            tokens = super()._model_generate(context, max_length, stop, **named, **generation_kwargs)
        first = first_evictions(cache.evicted_at).view(len(context), -1).amin(dim=1)
        for row, evicted in zip(tokens[:, prompt:].tolist(), first.tolist(), strict=True):
            # A row goes on after its stop sequence until all rows have theirs, which is not part of its answer.
            answer = bisect_left(range(len(row)), True, lo=1, key=lambda end: self._stops(row[:end], stop))
            self._counts.append((answer, count_affected(prompt, answer, evicted)))
        return tokens

    def _stops(self, tokens: list[int], stop: list[str]) -> bool:
        text = self.tok_decode(tokens, skip_special_tokens=False)
        return any(sequence in text for sequence in stop)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
