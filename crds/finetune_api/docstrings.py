"""The docstrings below attributes, read from the source on demand.

Pydantic can do that itself, but only when a model is created: for the contract's hundred models that took
seconds in every process that imports them, and only the generator needs it.
"""

import ast
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path


def attribute_docs(model: type) -> Mapping[str, str]:
    """Attribute → the docstring below it, in `model` and its base classes; the nearest class wins."""
    docs: dict[str, str] = {}
    for base in reversed(model.__mro__):
        docs |= _classes(base.__module__).get(base.__qualname__, {})
    return docs


@cache
def _classes(module: str) -> Mapping[str, Mapping[str, str]]:
    """Class → attribute → docstring of a module of this package; empty for any other."""
    if module.partition(".")[0] != __name__.partition(".")[0]:
        return {}
    source = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    return {
        node.name: dict(_documented(node.body))
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def _documented(body: list[ast.stmt]) -> list[tuple[str, str]]:
    found = []
    for attribute, below in pairwise(body):
        match attribute, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found.append((name, inspect.cleandoc(text)))
            case _:
                pass  # an attribute without a docstring, or not an attribute
    return found
