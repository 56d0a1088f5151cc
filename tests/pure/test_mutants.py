"""A broken version of the product replaces something that the product has, and is called as that is."""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "mutants"
# `operator_that_dies` is told by its test what to replace, and does not start if that is not there.
NAMES = sorted(path.stem for path in FOLDER.glob("*_that_*.py") if path.stem != "operator_that_dies")
NAMES += sorted(path.stem for kind in ("agent", "operator") for path in FOLDER.glob(f"{kind}_w*.py"))


def replaced(name: str) -> Iterator[tuple[Any, str, Any]]:
    """(owner, attribute, what takes its place) of everything that a mutant replaces when it is run."""
    known = dict(vars(importlib.import_module(f"mutants.{name}")))

    def value(expression: ast.expr) -> Any:
        return eval(compile(ast.Expression(expression), name, "eval"), known)

    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    (run,) = (node for node in tree.body if isinstance(node, ast.If))
    for statement in run.body[:-1]:  # the last one is main()
        owners = [each for each in getattr(statement, "targets", ()) if isinstance(each, ast.Attribute)]
        if not owners:
            exec(compile(ast.Module([statement], []), name, "exec"), known)
        for each in owners:
            assert isinstance(statement, ast.Assign)
            yield value(each.value), each.attr, value(statement.value)


def parameters(function: Callable[..., Any]) -> int | None:
    """How many it takes by position; None if any number, or if nobody knows."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(each.kind is each.VAR_POSITIONAL for each in found):
        return None
    return sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in found)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_broken_version_replaces_is_there(name: str) -> None:
    for owner, attribute, new in replaced(name):
        assert hasattr(owner, attribute), f"{owner} has no {attribute} any more: this version is not broken"
        old, takes = parameters(getattr(owner, attribute)), parameters(new)
        assert None in (old, takes) or old == takes, f"{attribute} takes {old}, what takes its place {takes}"
