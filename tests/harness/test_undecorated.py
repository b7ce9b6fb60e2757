"""Modules without decorators do what they did with them."""

import ast
from typing import Any

from tools.undecorated import undecorated

CODE = '''
from abc import ABC, abstractmethod
from contextlib import contextmanager
from functools import cached_property, lru_cache
import torch

calls = []


class Base(ABC):
    @property
    @abstractmethod
    def size(self):
        """Left alone."""


class Table(Base):
    def __init__(self, size):
        self.number = size

    @property
    def size(self):
        return self.number + 1

    @cached_property
    def twice(self):
        calls.append("twice")
        return self.number * 2

    @classmethod
    def of(cls):
        return cls(5)


@contextmanager
def opened(name):
    calls.append(name)
    yield name.upper()
    calls.append("closed")


@torch.no_grad()
def tracks():
    return torch.is_grad_enabled()


@lru_cache(maxsize=4)
def remembered(value):
    calls.append(value)
    return value * 2
'''


def test_a_module_does_the_same_without_decorators() -> None:
    """Properties, contexts and functions without gradients are as they were; memos are gone."""
    code = undecorated(CODE)
    names: dict[str, Any] = {}
    exec(compile(code, "module", "exec"), names)
    assert names["Table"].of().size == 6
    with names["opened"]("a") as name:
        assert name == "A"
    assert names["calls"] == ["a", "closed"]
    assert names["tracks"]() is False
    assert [names["remembered"](3), names["remembered"](3)] == [6, 6]
    assert names["calls"] == ["a", "closed", 3, 3]
    table = names["Table"](2)
    assert [table.twice, table.twice] == [4, 4]
    assert names["calls"][4:] == ["twice", "twice"]


def test_only_what_cannot_be_moved_is_still_decorated() -> None:
    """Abstract properties and class methods; and what has no decorators is not changed."""
    code = undecorated(CODE)
    left = {
        (node.name, ast.unparse(decorator))
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
    }
    assert left == {("size", "property"), ("size", "abstractmethod"), ("of", "classmethod")}
    assert undecorated(code) == code
