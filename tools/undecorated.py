"""Modules without decorators, for mutmut, which leaves decorated functions alone.

``python tools/undecorated.py FOLDER`` rewrites the modules of a copy of the sources.
"""

import ast
import sys
from pathlib import Path

APPLIED = ("property", "contextmanager", "torch.no_grad()")
"""Decorators that are applied at the end of the module instead."""


def undecorated(code: str) -> str:
    """A module that does the same with fewer decorated functions.

    Decorators of ``APPLIED`` move to the end of the module. Memos are left out, and a ``cached_property`` becomes a
    ``property``: they change no result, and a result that is remembered from the original would hide a mutant.
    """
    lines = code.splitlines(keepends=True)
    below: list[str] = []
    tree = ast.parse(code)
    owners: list[ast.Module | ast.ClassDef] = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    for owner in owners:
        prefix = f"{owner.name}." if isinstance(owner, ast.ClassDef) else ""
        for node in owner.body:
            if not isinstance(node, ast.FunctionDef) or len(node.decorator_list) != 1:
                continue
            name, decorator = prefix + node.name, ast.unparse(node.decorator_list[0])
            if decorator in APPLIED:
                below.append(f"{name} = {decorator}({name})\n")
            elif decorator == "cached_property":
                below.append(f"{name} = property({name})\n")
            elif not decorator.startswith("lru_cache("):
                continue
            lines[node.decorator_list[0].lineno - 1] = ""
    return "".join([*lines, *below])


def main(folder: str) -> None:
    """Rewrite all modules below a folder."""
    for path in Path(folder).rglob("*.py"):
        path.write_text(undecorated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
