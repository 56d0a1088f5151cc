"""Options that belong together, as one parameter of a command: typer itself knows only one option for each."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

Command = Callable[..., int]


def bundled(command: Command) -> Command:
    """The command for typer: each parameter that is a dataclass is given as the options that its fields are."""
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    bundles = {name: hints[name] for name in signature.parameters if is_dataclass(hints[name])}
    flat: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name in bundles:
            flat += _options(bundles[parameter.name])
        else:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name]))

    @functools.wraps(command)
    def call(**given: Any) -> int:
        for name, bundle in bundles.items():
            given[name] = bundle(**{field.name: given.pop(field.name) for field in fields(bundle)})
        return command(**given)

    del call.__wrapped__  # or its signature would be read instead
    made: Any = call
    made.__signature__ = signature.replace(parameters=flat)
    made.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return call


def _options(bundle: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(bundle, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, kind, default=_default(field), annotation=hints[field.name])
        for field in fields(bundle)
    ]


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
