"""A name in a bundle means the same file on every system."""

import pytest

from pocketlens.core.names import MAX_NAME_BYTES, name_fault, names_fault


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "graphs/onnx-int4-block32/image_encoder.onnx",
        "graphs/coreml-fp16/text_encoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
        "device_kit/pocketlens_preprocess.h",
        ".hidden",
        "a b",
        "console.txt",
        "com10.txt",
        "golden/été".encode("ascii", "ignore").decode() + "x",
        "a" * MAX_NAME_BYTES,
    ],
)
def test_a_plain_name_is_accepted(name: str) -> None:
    assert name_fault(name) is None


@pytest.mark.parametrize("name", ["CON", "con.txt", "golden/Aux", "nul.tar.gz", "COM0", "lpt9.x", "con .txt", "CONIN$"])
def test_names_of_windows_devices_are_refused(name: str) -> None:
    assert "device name" in (name_fault(name) or "")


def test_names_that_meet_somewhere_are_found() -> None:
    assert names_fault(["a", "b/c", "b/d", "e/f/g", "e/f/h"]) is None
    assert names_fault(["a", "a"]) == "a twice"
    assert "case" in (names_fault(["b/c", "B/d"]) or "")
    assert "case" in (names_fault(["b/c", "b/C"]) or "")
    assert "as a file and as a folder" in (names_fault(["a/b", "a"]) or "")
    assert "as a file and as a folder" in (names_fault(["a", "a/b"]) or "")
