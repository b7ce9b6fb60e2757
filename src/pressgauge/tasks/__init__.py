"""Long-context tasks that need no download: prompts that hide strings, and the recall of answers. Without torch."""

from pressgauge.tasks.counting import CWE, FWE
from pressgauge.tasks.needles import MULTIKEY, NIAH, PASSKEY
from pressgauge.tasks.recall import RECALL_TASK
from pressgauge.tasks.sample import Task
from pressgauge.tasks.tracking import VT

TASKS: dict[str, Task] = {task.name: task for task in (NIAH, MULTIKEY, VT, CWE, FWE, PASSKEY, RECALL_TASK)}
"""Tasks by name."""


def check_task_name(name: str) -> None:
    """Raise ``ValueError`` if there is no task of this name."""
    if name not in TASKS:
        raise ValueError(f"--task must be one of {', '.join(TASKS)}, got {name!r}")
