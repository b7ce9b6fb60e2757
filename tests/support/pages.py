"""Pages of the documentation: their code, commands, and named sessions."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Fenced blocks of a language: the line number of the fence, and the text."""
    text = page.read_text(encoding="utf-8")
    fences = re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text[: fence.start(1)].count("\n"), fence.group(1)) for fence in fences]


def commands(page: Path) -> list[str]:
    """Typed lines of the console blocks, without the prompt."""
    lines = [line for _, block in blocks(page, "console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def name_of(page: Path) -> str:
    """Name of a page in the project, the same on every system."""
    return page.relative_to(ROOT).as_posix()


PACKAGES = ["kvpress", *tomllib.loads((ROOT / "tests" / "peers" / "packages.toml").read_text(encoding="utf-8"))]
"""Third-party packages with a session each."""


def sessions() -> set[str]:
    """Sessions of ``noxfile.py``, parsed without nox."""
    names = set()
    for node in ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and any(
            re.match(r"nox\.session\b", ast.unparse(d)) for d in node.decorator_list
        ):
            names.add(node.name)
            for decorator in node.decorator_list:
                ids = [word.value for word in getattr(decorator, "keywords", []) if word.arg == "ids"]
                # The only ids that are no literal are those of the packages.
                listed = [ast.literal_eval(each) if isinstance(each, ast.List) else PACKAGES for each in ids]
                names |= {f"{node.name}({name})" for some in listed for name in some}
    return names
