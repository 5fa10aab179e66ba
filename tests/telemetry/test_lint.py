"""The shipped declaration is sound; each planted defect is named in a sentence."""

from datetime import date
from pathlib import Path

import pytest

from pocketlens.telemetry import lint, load_schema
from pocketlens.telemetry.schema import SCHEMA_PATH

DAY = date(2026, 11, 22)
TEXT = SCHEMA_PATH.read_text(encoding="utf-8")


def lint_text(folder: Path, text: str, on: date = DAY) -> list[str]:
    path = folder / "events.yaml"
    path.write_text(text, encoding="utf-8")
    return list(lint(load_schema(path), on=on))


def test_the_shipped_declaration_is_sound() -> None:
    assert list(lint(load_schema(), on=DAY)) == []


def test_every_event_is_named_once_it_expired() -> None:
    found = list(lint(load_schema(), on=date(2028, 1, 1)))
    assert len(found) == len(load_schema().events)
    assert found[0] == ("Event engine_loaded expired on 2027-12-31: review it and set a new date, or remove it.")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("        unit: probability\n", "", "Field caption_served.confidence is a quantity without a unit."),
        (
            "        unit: items\n",
            "        unit: ''\n",
            "Field embedding_served.batch_size is a quantity without a unit.",
        ),
        (
            "  picture_refused:\n",
            "  picture_taken:\n",
            "Event picture_taken is declared but does not exist in core.events.",
        ),
        (
            "  picture_refused:\n",
            "  picture_taken:\n",
            "Event picture_refused exists in core.events but is not declared.",
        ),
        (
            "      modality:\n",
            "      mode:\n",
            "Field embedding_served.modality exists in core.events but is not declared.",
        ),
        (
            "      modality:\n",
            "      mode:\n",
            "Field embedding_served.mode is declared but does not exist in core.events.",
        ),
        (
            "type: flag",
            "type: version",
            "Field fallback_decided.sent is declared as version but is of type bool.",
        ),
        (
            "[device, cloud, abstained]",
            "[device, cloud]",
            "Field caption_served.source must declare the words of its type: device, cloud, abstained.",
        ),
        (
            "[image, text]",
            "[image, image]",
            "Field embedding_served.modality needs at least two words, each of them once.",
        ),
        (
            "maximum: 1\n",
            "maximum: 0\n",
            "Field caption_served.confidence admits nothing: its minimum is not below its maximum.",
        ),
        (
            "leaves_device: false",
            "leaves_device: true",
            "Event engine_loaded is declared to leave the device, but pocketlens has no upload.",
        ),
        ("owner: pocketlens runtime", "owner: ''", "Event engine_loaded has an empty owner."),
        (
            "purpose: What decided.",
            "purpose: ' '",
            "Field fallback_decided.reason has an empty purpose.",
        ),
    ],
)
def test_a_planted_defect_is_named(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in TEXT
    assert sentence in lint_text(tmp_path, TEXT.replace(old, new, 1))
