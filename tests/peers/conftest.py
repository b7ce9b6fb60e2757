"""Without kvpress, as outside ``nox -s peers``, modules that need it are not collected."""

from importlib.util import find_spec

collect_ignore = (
    [] if find_spec("kvpress") else ["catalogue.py", "kvpress_presses.py", "test_agreement.py", "test_watch.py"]
)
