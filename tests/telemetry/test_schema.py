"""The declaration equals core.events and the fallback's words, and nothing undeclared gets through."""

import re
from datetime import date
from pathlib import Path
from typing import Literal, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlens.cloud_fallback import FALLBACK_REASONS
from pocketlens.core.captions import CaptionSource
from pocketlens.core.errors import PICTURE_KINDS, TelemetryError
from pocketlens.core.events import (
    CaptionServed,
    EmbeddingServed,
    EngineFellBack,
    EngineLoaded,
    FallbackDecided,
    PictureRefused,
)
from pocketlens.telemetry import load_schema
from pocketlens.telemetry.schema import (
    EVENT_TYPES,
    SCHEMA_PATH,
    CountField,
    FlagField,
    NumberField,
    VersionField,
    WordField,
)

DAY = date(2026, 11, 22)
SCHEMA = load_schema()
GOOD = (
    EngineLoaded("nano-1.0.0+3f2a", "onnxruntime", "int8", 12.7),
    EmbeddingServed("nano-1.0.0+3f2a", "image", 32, 81.26),
    CaptionServed("nano-1.0.0+3f2a", "device", 0.8371, 9, 14.25),
    PictureRefused("nano-1.0.0+3f2a", "corrupt"),
    FallbackDecided("nano-1.0.0+3f2a", sent=True, reason="send"),
    EngineFellBack("nano-1.0.0+3f2a", "image_encoder", "onnxruntime:cuda", "onnxruntime", "unavailable"),
)
NUMBERS = st.floats() | st.integers()
ANYTHING = st.one_of(st.text(), st.binary(), NUMBERS, st.booleans(), st.none(), st.lists(st.floats()))


def words(event: str, field: str) -> tuple[str, ...]:
    declared = SCHEMA.events[event].fields[field]
    assert isinstance(declared, WordField)
    return declared.values


def test_the_declaration_and_core_events_are_equal() -> None:
    kinds: dict[object, type | tuple[type, ...]] = {
        str: (WordField, VersionField),
        float: NumberField,
        int: CountField,
        bool: FlagField,
    }
    assert SCHEMA.events.keys() == EVENT_TYPES.keys() == {type(event).__struct_config__.tag for event in GOOD}
    for name, kind in EVENT_TYPES.items():
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        assert SCHEMA.events[name].fields.keys() == fields.keys()
        for field, annotation in fields.items():
            plain = str if get_origin(annotation) is Literal else annotation
            assert isinstance(SCHEMA.events[name].fields[field], kinds[plain])


def test_the_closed_sets_are_those_of_the_code() -> None:
    assert set(words("caption_served", "source")) == set(get_args(CaptionSource))
    assert words("picture_refused", "kind") == PICTURE_KINDS
    assert words("fallback_decided", "reason") == FALLBACK_REASONS


def test_every_good_event_is_admitted_with_its_numbers_rounded() -> None:
    admitted = [SCHEMA.admit(event, on=DAY) for event in GOOD]
    assert admitted[2] == {
        "event": "caption_served",
        "model_version": "nano-1.0.0+3f2a",
        "source": "device",
        "confidence": 0.84,
        "tokens": 9,
        "caption_ms": 14.2,
    }
    assert [record and record["event"] for record in admitted] == [type(event).__struct_config__.tag for event in GOOD]


@given(st.sampled_from(GOOD), st.data())
def test_no_text_gets_in_through_any_field(event: msgspec.Struct, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(event.__struct_fields__))
    value = data.draw(ANYTHING | st.sampled_from(["a cat on a sofa", "/home/ann/cat.jpg", "cat.jpg"]))
    record = SCHEMA.admit(msgspec.structs.replace(event, **{field: value}), on=DAY)
    if record is None:
        return
    declared = SCHEMA.events[str(record["event"])].fields[field]
    match declared:
        case WordField():
            assert value in declared.values
        case VersionField():
            assert re.fullmatch(r"[a-z0-9._+-]{1,48}", value)
            assert any(character.isdigit() for character in value)
        case NumberField() | CountField():
            assert not isinstance(value, bool)
            assert isinstance(value, int | float)
            assert declared.minimum <= value <= declared.maximum
        case FlagField():
            assert isinstance(value, bool)
    assert record.keys() == {"event", *event.__struct_fields__}


@pytest.mark.parametrize(
    "version",
    [
        "",
        "cat",
        "a cat 2",
        "/tmp/2",
        "cat2.jpg",
        "2\n",
        "..",
        "x" * 48 + "1",
        "CAT-1",
        "1.0.",
        "é1",
        "1.0.gps",
    ],
)
def test_what_is_no_model_version_is_refused(version: str) -> None:
    assert SCHEMA.admit(PictureRefused(version, "corrupt"), on=DAY) is None


@pytest.mark.parametrize("version", ["1", "0.1.0", "nano-1", "nano-2026.11.22", "1.0.0-rc1", "3f2a9c1b0d4e"])
def test_what_is_a_model_version_is_admitted(version: str) -> None:
    assert SCHEMA.admit(PictureRefused(version, "corrupt"), on=DAY) is not None


def test_a_word_that_only_compares_equal_is_stored_as_the_declared_one() -> None:
    class Sly(str):
        secret = "a cat"

    record = SCHEMA.admit(PictureRefused("1", Sly("corrupt")), on=DAY)
    assert record is not None
    assert type(record["kind"]) is str


def test_an_event_is_refused_from_the_day_after_it_expired() -> None:
    last = SCHEMA.events["picture_refused"].expires
    assert SCHEMA.admit(GOOD[3], on=last) is not None
    assert SCHEMA.admit(GOOD[3], on=date(last.year + 1, 1, 1)) is None


@pytest.mark.parametrize("thing", ["picture_refused", {"event": "picture_refused"}, None, object(), 3.5])
def test_what_is_no_event_is_refused(thing: object) -> None:
    assert SCHEMA.admit(thing, on=DAY) is None


class Impostor(msgspec.Struct, frozen=True, tag="picture_refused", tag_field="event"):
    model_version: str
    kind: str


def test_a_struct_that_bears_the_name_of_an_event_is_refused() -> None:
    assert SCHEMA.admit(Impostor("1", "corrupt"), on=DAY) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("schema_version: 1", "schema_version: 2"),
        ("sensitivity: technical", "sensitivity: none"),
        ("expires: 2027-12-31", "expires: someday"),
        ("    owner: pocketlens runtime\n", ""),
        ("    owner: pocketlens runtime\n", "    owner: us\n    colour: red\n"),
        ("unit: ms", "unit: ms\n        colour: red"),
        ("type: flag", "type: text"),
        ("events:", "events: ["),
    ],
)
def test_a_malformed_declaration_is_one_typed_error(tmp_path: Path, old: str, new: str) -> None:
    text = SCHEMA_PATH.read_text(encoding="utf-8")
    assert old in text
    broken = tmp_path / "events.yaml"
    broken.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(TelemetryError, match=r"event declaration events\.yaml"):
        load_schema(broken)


def test_a_declaration_that_is_not_there_or_no_text_is_one_typed_error(tmp_path: Path) -> None:
    with pytest.raises(TelemetryError):
        load_schema(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TelemetryError):
        load_schema(tmp_path / "bytes.yaml")
