"""Off unless somebody says so."""

from pathlib import Path

import pytest

from pocketlens.core.errors import TelemetryError
from pocketlens.core.events import NULL_SINK, PictureRefused
from pocketlens.telemetry import EventLog, default_folder, read, sink_from_environment


@pytest.mark.parametrize("environ", [{}, {"POCKETLENS_TELEMETRY": ""}, {"POCKETLENS_TELEMETRY": "off"}])
def test_nothing_is_kept_by_default(environ: dict[str, str], tmp_path: Path) -> None:
    sink = sink_from_environment({**environ, "POCKETLENS_TELEMETRY_DIR": str(tmp_path / "log")})
    assert sink is NULL_SINK
    sink.emit(PictureRefused("nano-1", "corrupt"))
    assert list(tmp_path.iterdir()) == []


def test_the_switch_turns_on_a_local_log(tmp_path: Path) -> None:
    environ = {"POCKETLENS_TELEMETRY": "local", "POCKETLENS_TELEMETRY_DIR": str(tmp_path / "log")}
    sink = sink_from_environment(environ)
    assert isinstance(sink, EventLog)
    sink.emit(PictureRefused("nano-1", "corrupt"))
    assert len(list(read(tmp_path / "log"))) == 1


@pytest.mark.parametrize("value", ["on", "1", "LOCAL", "upload"])
def test_a_value_that_means_nothing_is_refused(value: str) -> None:
    with pytest.raises(TelemetryError, match="POCKETLENS_TELEMETRY"):
        sink_from_environment({"POCKETLENS_TELEMETRY": value})


def test_the_folder_is_the_named_one_else_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_folder({"POCKETLENS_TELEMETRY_DIR": str(tmp_path)}) == tmp_path
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder({}).parts[-2:] == ("pocketlens", "telemetry")
