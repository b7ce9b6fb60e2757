"""The page of the documentation that the zoo writes."""

from collections.abc import Mapping

from zoo.examine import Verdict


def page(found: Mapping[str, Verdict]) -> str:
    """The page."""
    return "\n".join(found)
