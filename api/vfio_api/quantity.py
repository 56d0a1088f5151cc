"""Kubernetes quantities, as far as they make sense for bytes."""

import re
from fractions import Fraction

_UNITS = {"": 1} | {
    f"{letter}{binary}": base**power
    for binary, base in (("", 1000), ("i", 1024))
    for power, letter in enumerate(("K" if binary else "k", "M", "G", "T", "P", "E"), start=1)
}
# As the CRD's schema says it. Quantity also knows signs, exponents, and n, u and m: no sense for bytes.
PATTERN = r"^[0-9]{1,19}(\.[0-9]{1,9})?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
MAX_LENGTH = 32
# 1Ei. Any limit will do, but for 2^63-1: the API server's Quantity turns whatever is larger into that.
MAX_BYTES = 2**60
_QUANTITY = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)([A-Za-z]*)", re.ASCII)


def parse_quantity(value: int | str) -> int:
    """Return how many bytes a quantity such as 1048576, "500M" or "1.5Gi" is; a part of a byte counts as one.

    Raises ValueError, with a message for the user, if it is no number of bytes between 1 and 1Ei. Source:
    k8s.io/apimachinery/pkg/api/resource/quantity.go (its Value() rounds up too).
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not a quantity: write a number of bytes, such as 500M or 1.5Gi")
    if isinstance(value, int):
        size = Fraction(value)
    else:
        match = _QUANTITY.fullmatch(value)
        if match is None:
            raise ValueError(f"{value!r} is not a quantity: write a number of bytes, such as 500M or 1.5Gi")
        if match[2] not in _UNITS:
            units = ", ".join(unit for unit in _UNITS if unit)
            raise ValueError(f"{value!r} has the unknown unit {match[2]!r}: use {units}, or none for bytes")
        size = Fraction(match[1]) * _UNITS[match[2]]
    if not 0 < size <= MAX_BYTES:
        raise ValueError(f"{value!r} is out of range: it must be more than 0 and at most 1Ei")
    return -(-size.numerator // size.denominator)
