"""Models of transformers: version differences, support for presses, and loading."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pressgauge import lazy

if TYPE_CHECKING:
    from pressgauge.models.loading import load as load
    from pressgauge.models.loading import load_parts as load_parts
    from pressgauge.models.loading import pick_device as pick_device

REFERENCES = ("reference", "reference-neox")
"""Models bundled with the package."""
DTYPES = ("float64", "float32", "bfloat16", "float16")

__getattr__ = lazy.attributes(__name__, dict.fromkeys(("load", "load_parts", "pick_device"), "loading"))


def location(name: str) -> str:
    """First argument for ``from_pretrained``: the folder of a reference model or of a GGUF file, else ``name``."""
    if name in REFERENCES:
        return str(Path(__file__).parents[1] / "reference" / name)
    file = gguf_file(name)
    return name if file is None else name.removesuffix(file).rstrip("/") or "."


def gguf_file(name: str) -> str | None:
    """The file of a model that is named by one: a local path, or ``owner/name/file.gguf`` on the hub."""
    if not name.endswith(".gguf"):
        return None
    path = Path(name)
    return path.name if path.parent.is_dir() or len(path.parts) < 3 else "/".join(path.parts[2:])


def check_dtype(dtype: str) -> None:
    """Raise ``ValueError`` unless models can be loaded in this dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")


def check_model_name(name: str) -> None:
    """Raise ``ValueError`` if ``name`` is neither a folder, nor a GGUF file, nor a valid hub name."""
    place, file = Path(location(name)), gguf_file(name)
    if place.is_dir():
        if file is not None and not (place / file).is_file():
            raise not_loaded(name, "there is no such file")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(place)):
        raise not_loaded(name, "there is no such folder, and no name on the hub has this form")


def not_loaded(name: str, reason: str) -> ValueError:
    """The error for a model that cannot be loaded."""
    return ValueError(
        f"model {name!r} could not be loaded: give {' or '.join(REFERENCES)}, a folder with config.json, a "
        f"tokenizer and *.safetensors, a *.gguf file, or a hub's name where there is a network ({reason})"
    )
