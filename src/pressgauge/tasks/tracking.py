"""Variable tracking of RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3.2), in wording of our own."""

from itertools import cycle, islice
from string import ascii_uppercase

from pressgauge.tasks.draw import Draw
from pressgauge.tasks.needles import hide
from pressgauge.tasks.sample import Sample, Task
from pressgauge.tasks.words import NOISE

VARIABLES = 5
"""Variables of the chain: four are assigned the one before."""
_LETTERS = 5


def _tracking(seed: int, size: int, hiding: int) -> Sample:
    draw = Draw(seed, 0)
    value = 10**4 + draw.below(9 * 10**4)
    depths = sorted(draw.below(1000) / 1000 for _ in range(VARIABLES))
    names: dict[str, None] = {}
    letters = Draw(hiding, 1)
    while len(names) < VARIABLES:
        names["".join(letters.choose(ascii_uppercase) for _ in range(_LETTERS))] = None
    chain = list(names)
    lines = [f"VAR {name} = {source}." for name, source in zip(chain, [str(value), *chain], strict=False)]
    text = hide(list(islice(cycle(NOISE), size)), lines, depths)
    return Sample(
        f"Follow the assignments of variables in this text.\n{text}\n",
        f"Question: Which {VARIABLES} variables have the value {value}, directly or through others?\n"
        f"Answer: The {VARIABLES} variables with the value {value} are",
        tuple((name,) for name in chain),
    )


VT = Task("vt", f"the {VARIABLES} variables of a chain of assignments, among repeated sentences", _tracking)
