"""Spans of time as kubectl takes them, such as 90s, 15m or 1h30m, or a plain number in the unit of the option. Pure."""

import re
from collections.abc import Callable
from decimal import Decimal

import typer

_SECONDS = {"ns": "1e-9", "us": "1e-6", "µs": "1e-6", "ms": "1e-3", "s": "1", "m": "60", "h": "3600"}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_PLAIN = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_UNITS = {"s": "seconds", "ms": "milliseconds"}


def spans(text: str, unit: str) -> Decimal:
    """How often `unit` ("s" or "ms") goes into a span. Raises ValueError."""
    if _PLAIN.fullmatch(text):
        return Decimal(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + name for number, name in parts) != text:
        raise ValueError(text)
    seconds = sum((Decimal(number) * Decimal(_SECONDS[name]) for number, name in parts), Decimal(0))
    return seconds / Decimal(_SECONDS[unit])


def whole(unit: str) -> Callable[[str], int]:
    """A parser of an option whose value is a whole number of that unit."""

    def parse(text: str) -> int:
        example = "300 or 300ms" if unit == "ms" else "90, 90s or 5m"
        found = _number(text, unit, example)
        if found != found.to_integral_value():
            raise typer.BadParameter(f"expected a whole number of {_UNITS[unit]}, found {text!r}")
        return int(found)

    return parse


def seconds(text: str) -> float:
    """The parser of an option that is a time to wait."""
    return float(_number(text, "s", "90, 90s or 15m"))


def _number(text: str, unit: str, example: str) -> Decimal:
    try:
        return spans(text.strip(), unit)
    except ValueError:
        expected = f"expected a time such as {example} (a plain number is {_UNITS[unit]})"
        raise typer.BadParameter(f"{expected}, found {text!r}") from None
