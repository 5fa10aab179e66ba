"""What is wrong with a declaration that can be read: every check yields whole sentences."""

from collections.abc import Callable, Iterator
from datetime import date
from typing import Final, Literal, get_args, get_origin

import msgspec

from pocketlens.telemetry.schema import (
    EVENT_TYPES,
    CountField,
    Field,
    FlagField,
    NumberField,
    Schema,
    VersionField,
    WordField,
)

__all__ = ["lint"]

_PYTHON_TYPES: Final[dict[type, type]] = {
    WordField: str,
    VersionField: str,
    NumberField: float,
    CountField: int,
    FlagField: bool,
}


def lint(schema: Schema, *, on: date) -> Iterator[str]:
    """Yield one sentence per defect of `schema` as it stands on the day `on`; nothing if it is sound.

    The declaration must equal `pocketlens.core.events` in both directions: every event struct is
    declared, every declared event and field exists there with the same type and the same words.
    """
    for check in _CHECKS:
        yield from check(schema, on)


def _expiry(schema: Schema, on: date) -> Iterator[str]:
    for name, event in schema.events.items():
        if on > event.expires:
            yield f"Event {name} expired on {event.expires}: review it and set a new date, or remove it."


def _prose(schema: Schema, _: date) -> Iterator[str]:
    for name, event in schema.events.items():
        for key in ("purpose", "owner", "review"):
            if not getattr(event, key).strip():
                yield f"Event {name} has an empty {key}."
        for field, declared in event.fields.items():
            if not declared.purpose.strip():
                yield f"Field {name}.{field} has an empty purpose."


def _stays_here(schema: Schema, _: date) -> Iterator[str]:
    for name, event in schema.events.items():
        if event.leaves_device:
            yield f"Event {name} is declared to leave the device, but pocketlens has no upload."


def _ranges(schema: Schema, _: date) -> Iterator[str]:
    for name, field, declared in _fields(schema):
        if isinstance(declared, NumberField | CountField):
            if not declared.unit.strip():
                yield f"Field {name}.{field} is a quantity without a unit."
            if not declared.minimum < declared.maximum:
                yield f"Field {name}.{field} admits nothing: its minimum is not below its maximum."
        if isinstance(declared, WordField) and len(set(declared.values)) < max(2, len(declared.values)):
            yield f"Field {name}.{field} needs at least two words, each of them once."


def _same_events(schema: Schema, _: date) -> Iterator[str]:
    for name in sorted(EVENT_TYPES.keys() - schema.events.keys()):
        yield f"Event {name} exists in core.events but is not declared."
    for name in sorted(schema.events.keys() - EVENT_TYPES.keys()):
        yield f"Event {name} is declared but does not exist in core.events."


def _same_fields(schema: Schema, _: date) -> Iterator[str]:
    for name in schema.events.keys() & EVENT_TYPES.keys():
        declared = schema.events[name].fields
        actual = {field.name: field.type for field in msgspec.structs.fields(EVENT_TYPES[name])}
        for field in sorted(actual.keys() - declared.keys()):
            yield f"Field {name}.{field} exists in core.events but is not declared."
        for field in sorted(declared.keys() - actual.keys()):
            yield f"Field {name}.{field} is declared but does not exist in core.events."
        for field in sorted(declared.keys() & actual.keys()):
            yield from _same_type(f"{name}.{field}", declared[field], actual[field])


def _same_type(where: str, declared: Field, actual: object) -> Iterator[str]:
    if get_origin(actual) is Literal:
        words = declared.values if isinstance(declared, WordField) else ()
        if set(words) != set(get_args(actual)):
            yield f"Field {where} must declare the words of its type: {', '.join(get_args(actual))}."
    elif _PYTHON_TYPES[type(declared)] is not actual:
        kind = getattr(actual, "__name__", actual)
        yield f"Field {where} is declared as {type(declared).__struct_config__.tag} but is of type {kind}."


def _fields(schema: Schema) -> Iterator[tuple[str, str, Field]]:
    for name, event in schema.events.items():
        for field, declared in event.fields.items():
            yield name, field, declared


_CHECKS: Final[tuple[Callable[[Schema, date], Iterator[str]], ...]] = (
    _expiry,
    _prose,
    _stays_here,
    _ranges,
    _same_events,
    _same_fields,
)
