"""The reference language: a small synthetic language with known exact entropy.

A document is a sequence of sentences of three kinds::

    remember NAME VALUE .      a fact, stated once per name
    recall NAME VALUE .        a fact stated earlier, recalled
    WORD WORD ... .            a walk of a Markov chain

Kind, name, value and words are drawn with probabilities that depend only on the document so far, so the generator knows
the exact probability of each next token. Their mean NLL is the entropy rate, which no model beats in expectation. So a
perplexity function can be checked for correctness, not only for stability.
"""

import math
import random
from dataclasses import dataclass
from functools import cached_property

PAD, BOS, STOP, REMEMBER, RECALL = "<pad>", "<bos>", ".", "remember", "recall"

NAMES = tuple(
    onset + ending
    for onset in ("b", "d", "f", "k", "l", "m", "n", "r")
    for ending in ("ado", "eli", "ina", "oma", "uri", "ylo", "aki", "esu")
)
VALUES = tuple(
    (
        "amber azure beige black blue bronze brown coral cream crimson cyan ebony emerald fawn gold "
        "green grey indigo ivory jade lemon lilac mauve olive orange pearl pink plum red ruby silver white"
    ).split()
)
WORDS = tuple(
    (
        "the a this every some one old young tall quiet quick small river hill forest road bridge garden "
        "house window letter stone bird horse farmer sailor runs sleeps waits falls turns grows rests stands "
        "sings leaves over under near beyond behind along slowly often again today always never"
    ).split()
)
TOKENS = (PAD, BOS, STOP, REMEMBER, RECALL, *NAMES, *VALUES, *WORDS)
INDEX = {token: index for index, token in enumerate(TOKENS)}

REMEMBER_PROBABILITY = 0.1
RECALL_PROBABILITY = 0.5
STOP_PROBABILITY = 0.2
"""Probability that a walk ends after a word."""
FIRST_WORDS = WORDS[:8]
"""First words of a walk, equally likely."""
NEXT_PROBABILITIES = (0.5, 0.25, 0.15, 0.1)
"""Probabilities of a word's four successors, given that the walk continues."""


def _successors() -> dict[str, tuple[str, ...]]:
    draw = random.Random(20230817)
    table = {}
    for word in WORDS:
        others = [other for other in WORDS if other != word]
        table[word] = tuple(others.pop(int(draw.random() * len(others))) for _ in NEXT_PROBABILITIES)
    return table


SUCCESSORS = _successors()


@dataclass(frozen=True)
class Document:
    """A text of the reference language, with the exact probability of each of its tokens."""

    tokens: tuple[int, ...]
    """Token ids; the first is ``<bos>``."""
    nll: tuple[float, ...]
    """Exact NLL of each token given all tokens before it, in nats; 0 for ``<bos>``."""
    recalled: tuple[bool, ...]
    """True where the token is the value of a recalled fact, whose probability is 1."""

    @cached_property
    def text(self) -> str:
        """The document as text, without ``<bos>``, which the tokenizer adds."""
        return " ".join(TOKENS[token] for token in self.tokens[1:])

    @property
    def entropy(self) -> float:
        """Mean exact NLL of the tokens after ``<bos>``, in nats."""
        return math.fsum(self.nll[1:]) / (len(self.nll) - 1)


class _Writer:
    """Sampler of tokens that records their exact probabilities.

    Uses only ``Random.random()``, whose stream Python guarantees to stay the same.
    """

    def __init__(self, seed: int, length: int) -> None:
        self.draw = random.Random(seed).random
        self.length = length
        self.tokens = [INDEX[BOS]]
        self.nll = [0.0]
        self.recalled = [False]

    @property
    def full(self) -> bool:
        return len(self.tokens) >= self.length

    def put(self, token: str, probability: float, *, recalled: bool = False) -> None:
        if not self.full:
            self.tokens.append(INDEX[token])
            self.nll.append(-math.log(probability) if probability < 1 else 0.0)
            self.recalled.append(recalled)

    def choose(self, options: tuple[str, ...]) -> str:
        return options[int(self.draw() * len(options))]

    def walk(self, probability: float) -> None:
        """Write one Markov sentence; ``probability`` is that of this kind of sentence."""
        word = self.choose(FIRST_WORDS)
        self.put(word, probability / len(FIRST_WORDS))
        while not self.full:
            point = self.draw()
            if point < STOP_PROBABILITY:
                self.put(STOP, STOP_PROBABILITY)
                return
            point = (point - STOP_PROBABILITY) / (1 - STOP_PROBABILITY)
            choice = 0
            while choice < len(NEXT_PROBABILITIES) - 1 and point >= NEXT_PROBABILITIES[choice]:
                point -= NEXT_PROBABILITIES[choice]
                choice += 1
            word = SUCCESSORS[word][choice]
            self.put(word, (1 - STOP_PROBABILITY) * NEXT_PROBABILITIES[choice])


def document(seed: int, length: int) -> Document:
    """Generate the document of ``length`` tokens, including ``<bos>``, for a seed.

    A longer document of the same seed starts with the shorter one.

    Raises:
        ValueError: if ``length`` is less than 2.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    writer = _Writer(seed, length)
    facts: dict[str, str] = {}
    while not writer.full:
        remember = REMEMBER_PROBABILITY if len(facts) < len(NAMES) else 0.0
        recall = RECALL_PROBABILITY
        if not facts:
            remember, recall = remember + recall, 0.0
        kind = writer.draw()
        if kind < remember:
            unused = tuple(name for name in NAMES if name not in facts)
            name, value = writer.choose(unused), writer.choose(VALUES)
            facts[name] = value
            writer.put(REMEMBER, remember)
            writer.put(name, 1 / len(unused))
            writer.put(value, 1 / len(VALUES))
            writer.put(STOP, 1.0)
        elif kind < remember + recall:
            name = writer.choose(tuple(facts))
            writer.put(RECALL, recall)
            writer.put(name, 1 / len(facts))
            writer.put(facts[name], 1.0, recalled=True)
            writer.put(STOP, 1.0)
        else:
            writer.walk(1 - remember - recall)
    return Document(tuple(writer.tokens), tuple(writer.nll), tuple(writer.recalled))
