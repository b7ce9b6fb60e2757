"""Recall of a fact in the reference language, which the reference models know."""

from pressgauge.reference.language import NAMES, RECALL, REMEMBER, STOP, TOKENS, VALUES, document
from pressgauge.tasks.draw import Draw
from pressgauge.tasks.needles import hide
from pressgauge.tasks.sample import Sample, Task, depth


def _recall(seed: int, size: int, hiding: int) -> Sample:
    name = Draw(seed, 0).choose(NAMES)
    value = Draw(hiding, 1).choose(VALUES)
    words = " ".join(TOKENS[token] for token in document(seed, size).tokens[1:])
    # Whole sentences, without those about this name.
    sentences = [f"{sentence}{STOP}" for sentence in words.split(STOP)[:-1] if name not in sentence.split()]
    text = hide([sentence.strip() for sentence in sentences], [f"{REMEMBER} {name} {value} {STOP}"], [depth(seed)])
    return Sample(f"{text} ", f"{RECALL} {name}", ((value,),))


RECALL_TASK = Task(
    "recall",
    f"the value of a name in the reference language, stated once: `{REMEMBER} NAME VALUE .`; for reference models",
    _recall,
    least=20,
    exact=True,
)
