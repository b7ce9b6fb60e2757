"""The one place that knows transformers: its versions, what of its models a press supports, and loading."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pressgauge import lazy

if TYPE_CHECKING:
    from pressgauge.models.loading import load as load
    from pressgauge.models.loading import load_parts as load_parts
    from pressgauge.models.loading import pick_device as pick_device

REFERENCES = ("reference", "reference-neox")
"""The models that come with the package."""
DTYPES = ("float64", "float32", "bfloat16", "float16")

__getattr__ = lazy.attributes(__name__, dict.fromkeys(("load", "load_parts", "pick_device"), "loading"))


def location(name: str) -> str:
    """Where ``from_pretrained`` finds the model: the package's folder for a reference model, else the name itself."""
    return str(Path(__file__).parents[1] / "reference" / name) if name in REFERENCES else name


def check_dtype(dtype: str) -> None:
    """Raise a ``ValueError`` unless models load in this dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")


def check_model_name(name: str) -> None:
    """Raise a ``ValueError`` if this is neither a folder nor a name that a hub could know."""
    if not Path(location(name)).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise not_loaded(name, "there is no such folder, and no name on the hub has this form")


def not_loaded(name: str, reason: str) -> ValueError:
    """The error for a model that cannot be loaded."""
    return ValueError(
        f"model {name!r} could not be loaded: give {' or '.join(REFERENCES)}, a folder with config.json, a "
        f"tokenizer and *.safetensors, or a hub's name where there is a network ({reason})"
    )
