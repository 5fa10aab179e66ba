"""The declaration of every event, `events.yaml`: its types, how it is read, and what it admits."""

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from pocketlens.core.errors import TelemetryError
from pocketlens.core.events import Event

__all__ = [
    "EVENT_TYPES",
    "SCHEMA_PATH",
    "CountField",
    "EventDeclaration",
    "Field",
    "FlagField",
    "NumberField",
    "Schema",
    "VersionField",
    "WordField",
    "load_schema",
]

SCHEMA_PATH: Final = Path(__file__).with_name("events.yaml")
"""The declaration that ships with pocketlens."""

EVENT_TYPES: Final[Mapping[str, type[msgspec.Struct]]] = {
    str(kind.__struct_config__.tag): kind for kind in get_args(Event)
}
"""The event structs of `pocketlens.core.events` by name (their msgspec tag)."""

_NAMES: Final[Mapping[type, str]] = {kind: name for name, kind in EVENT_TYPES.items()}

# Loose enough for `1.2.0`, `nano-1.0.0+3f2a` and a bare digest; too tight for a sentence (no blank),
# a path (no slash) or a file name (a dot only before a digit).
_VERSION: Final = re.compile(r"(?=[^0-9]*[0-9])[a-z0-9]+(?:[-_+][a-z0-9]+|\.[0-9]+)*")
_VERSION_CHARACTERS: Final = 48


class _Declared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all declarations: immutable, unknown keys refused."""


class WordField(_Declared, frozen=True, tag="word"):
    """One of a closed set of words."""

    purpose: str
    values: tuple[str, ...]

    def admit(self, value: object) -> str | None:
        """Return `value` if it is one of `values`, `None` otherwise."""
        # The declared string is returned, not the given one: a subclass of str stays outside.
        return next((word for word in self.values if isinstance(value, str) and word == value), None)


class VersionField(_Declared, frozen=True, tag="version"):
    """A model version: at most 48 characters of a narrow alphabet, at least one digit among them."""

    purpose: str

    def admit(self, value: object) -> str | None:
        """Return `value` if it has the form of a version, `None` otherwise."""
        if type(value) is not str or len(value) > _VERSION_CHARACTERS:
            return None
        return value if _VERSION.fullmatch(value) else None


class NumberField(_Declared, frozen=True, tag="number"):
    """A finite number in `unit` within `minimum`..`maximum`, stored with `decimals` decimals."""

    purpose: str
    decimals: int
    minimum: float
    maximum: float
    unit: str = ""

    def admit(self, value: object) -> float | None:
        """Return `value` rounded if it is within the bounds, `None` otherwise (NaN included)."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return round(float(value), self.decimals) if self.minimum <= value <= self.maximum else None


class CountField(_Declared, frozen=True, tag="count"):
    """A whole number of `unit` within `minimum`..`maximum`."""

    purpose: str
    minimum: int
    maximum: int
    unit: str = ""

    def admit(self, value: object) -> int | None:
        """Return `value` if it is an integer within the bounds, `None` otherwise."""
        if isinstance(value, bool) or not isinstance(value, int):
            return None
        return int(value) if self.minimum <= value <= self.maximum else None


class FlagField(_Declared, frozen=True, tag="flag"):
    """True or false."""

    purpose: str

    def admit(self, value: object) -> bool | None:
        """Return `value` if it is a bool, `None` otherwise."""
        return value if isinstance(value, bool) else None


Field = WordField | VersionField | NumberField | CountField | FlagField


class EventDeclaration(_Declared, frozen=True):
    """One event type: why it exists, what it holds, until when it may be written."""

    purpose: str
    sensitivity: Literal["technical", "usage"]
    expires: date
    owner: str
    review: str
    leaves_device: bool
    fields: dict[str, Field]


class Schema(_Declared, frozen=True):
    """All declared events by name."""

    schema_version: Literal[1]
    events: dict[str, EventDeclaration]

    def admit(self, event: object, *, on: date) -> dict[str, object] | None:
        """Return what may be written about `event` on the day `on`, or `None` if nothing may.

        Nothing may be written about an object that is no event of `pocketlens.core.events`, about
        an undeclared or expired event, or when one field is not what its declaration says. The
        result holds the declared fields only, numbers rounded, and the name under `event`.
        """
        name = _NAMES.get(type(event), "")
        declaration = self.events.get(name)
        if declaration is None or on > declaration.expires:
            return None
        record: dict[str, object] = {"event": name}
        for field, declared in declaration.fields.items():
            admitted = declared.admit(getattr(event, field, None))
            if admitted is None:
                return None
            record[field] = admitted
        return record


def load_schema(path: Path = SCHEMA_PATH) -> Schema:
    """Return the declaration in the YAML file at `path`.

    Raises:
        TelemetryError: the file cannot be read, is no YAML, or does not have the form of `Schema`.
    """
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=Schema)
    except (OSError, msgspec.DecodeError) as error:
        raise TelemetryError(
            f"event declaration {path.name}",
            expected="a readable YAML file of the form that events.yaml explains at its top",
            found=str(error),
            remedy="Correct the declaration; without one no event is written.",
        ) from error
