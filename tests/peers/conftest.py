"""Where kvpress is not installed, nothing that needs it is collected: ``nox -s peers`` has an environment with it."""

from importlib.util import find_spec

collect_ignore = (
    [] if find_spec("kvpress") else ["catalogue.py", "kvpress_presses.py", "test_agreement.py", "test_watch.py"]
)
