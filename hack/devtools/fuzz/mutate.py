"""Inputs that are almost right: bytes, JSON values and protobuf messages, changed where they are structured."""

import json
import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

NUMBERS = (0, 1, 2, 7, 8, 255, 256, 4095, 4096, 65535, 1 << 20, (1 << 20) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
LARGE = (*NUMBERS, 1 << 53, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TEXTS = (
    "",
    "a",
    "gpu0",
    "Commit",
    "Abort",
    "Source",
    "Target",
    "../x",
    "a/b",
    "\0",
    "\u0661",
    "%s",
    "-1",
    "true",
    "null",
)
_NUMERIC = {FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64}
MOST_BYTES = 1 << 16


def changed_bytes(rng: random.Random, raw: bytes) -> bytes:
    """A few changes of bits, bytes, pieces or the length."""
    made = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(7):
            case 0 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(made):
                made[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                made[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                del made[at : at + rng.randrange(1, 9)]
            case 4:
                del made[at:]
            case 5:
                made[at:at] = made[: rng.randrange(64)]
            case _:
                made[at : at + 4] = rng.choice(NUMBERS).to_bytes(4, "big")
    return bytes(made[:MOST_BYTES])


def text(rng: random.Random) -> str:
    """A text of any kind, mostly short."""
    kind = rng.randrange(6)
    if kind == 0:
        return "x" * rng.choice((1, 36, 37, 512, 513, 4096, 4097))
    if kind == 1:
        return "".join(chr(rng.choice((0x41, 0x7F, 0xE9, 0x4E00, 0x1F600))) for _ in range(rng.randrange(8)))
    return rng.choice(TEXTS)


def json_value(rng: random.Random, depth: int = 3) -> Any:
    """Any JSON value."""
    kind = rng.randrange(9 if depth else 7)
    if kind == 7:
        return [json_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {text(rng): json_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    simple: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice(LARGE),
        lambda: -rng.choice(LARGE),
        lambda: 1 << 200,
        lambda: rng.choice((0.5, 1e300, float("inf"), float("nan"))),
        lambda: text(rng),
    )
    return simple[kind]()


def changed_json(rng: random.Random, value: Any) -> Any:
    """The value with one part replaced, removed, doubled or swapped."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        rest = {k: v for k, v in value.items() if k != key}
        kind = rng.randrange(8)
        if kind == 0:
            return rest
        if kind == 1:
            return {**value, text(rng): value[key]}
        if kind == 2:
            return {**value, key: value[rng.choice(list(value))]}
        return {**rest, key: changed_json(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return [*value[:at], *rng.choice(([], [changed_json(rng, value[at])], [value[at]] * 2)), *value[at + 1 :]]
    if isinstance(value, bool) and rng.random() < 0.7:
        return not value
    if isinstance(value, int) and rng.random() < 0.5:
        return value + rng.choice((-1, 1))
    return json_value(rng)


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """A JSON document that is near `value`: its structure changed, or its bytes, or nothing like it."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.randbytes(rng.randrange(64))
    if kind == 1:
        return rng.choice((b"[", b'{"a":', b"[{}," * 3)) * rng.choice((10, 900, 5000))
    if kind < 7:
        for _ in range(rng.choice((1, 1, 2, 3))):
            value = changed_json(rng, value)
        return json.dumps(value).encode()
    return changed_bytes(rng, json.dumps(value).encode())


def change_message(rng: random.Random, message: Message, words: tuple[str, ...] = ()) -> None:
    """Change one field of a protobuf message or of one inside of it; `words` are what its texts may be."""
    fields: Any = message.DESCRIPTOR.fields
    field: FieldDescriptor = rng.choice(fields)
    if field.is_repeated:
        _change_repeated(rng, getattr(message, field.name), field, words)
    elif field.message_type is not None:
        if rng.random() < 0.1:
            message.ClearField(field.name)
        else:
            inner = getattr(message, field.name)
            inner.SetInParent()
            change_message(rng, inner, words)
    else:
        setattr(message, field.name, _scalar(rng, field, words))


def _change_repeated(rng: random.Random, values: Any, field: FieldDescriptor, words: tuple[str, ...]) -> None:
    kind = rng.randrange(5)
    if kind == 0 and values:
        del values[rng.randrange(len(values)) :]
    elif kind == 1 and rng.random() < 0.1:
        count = rng.choice((2, 255, 256, 257, 1023, 1025))
        for _ in range(count):
            if field.message_type is not None:
                values.add()
            else:
                values.append(_scalar(rng, field, words))
    elif field.message_type is not None:
        change_message(rng, rng.choice(values) if values and kind > 2 else values.add(), words)
    else:
        values.append(_scalar(rng, field, words))


def _scalar(rng: random.Random, field: FieldDescriptor, words: tuple[str, ...]) -> Any:
    if field.cpp_type in _NUMERIC:
        return rng.choice(LARGE) % (1 << _NUMERIC[field.cpp_type])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 32, 8192, 8193)))
    return rng.choice(words) if words and rng.random() < 0.6 else text(rng)
