"""Reads a saved `.mlpackage` back."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from numpy.typing import NDArray

from pocketlens.core.errors import EngineError
from pocketlens.export.mil.program import MilProgram, Port, compile_steps, dtype_name
from pocketlens.export.quiet import quiet

__all__ = ["open_package", "run_package"]

_FUNCTION: Final = "main"
_WEIGHTS: Final = "Data/com.apple.CoreML/weights"


def open_package(path: Path) -> MilProgram:
    """Return the program in the folder `path`.

    Raises:
        EngineError: the folder is no ML program, or it holds operators that we do not know.
    """
    with quiet():  # coremltools warns that the version of torch is not one that it was tested with
        from coremltools.converters.mil.frontend.milproto.load import load
        from coremltools.models.utils import load_spec

    # coremltools and its C++ reader of weight files raise what they please.
    try:
        with quiet():
            spec = load_spec(str(path))
            program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=str(path / _WEIGHTS))
        function = program.functions[_FUNCTION]
    except Exception as error:
        raise EngineError(
            f"CoreML package {path}",
            expected="an ML program with one function, `main`",
            found=f"{type(error).__name__}: {str(error)[:300]}",
            remedy="Export the bundle again; neural networks of the older format cannot be read.",
        ) from error
    name = path.stem
    values, steps = compile_steps(name, list(function.operations))
    described = spec.description
    variables: dict[str, Any] = dict(function.inputs)
    pictures = {feature.name: _picture(feature) for feature in described.input}
    return MilProgram(
        name=name,
        inputs=_ports((feature.name for feature in described.input), variables, pictures),
        outputs=_ports((f.name for f in described.output), {v.name: v for v in function.outputs}, {}),
        states=_ports((feature.name for feature in described.state), variables, {}),
        values=values,
        steps=steps,
        specification=int(spec.specificationVersion),
    )


def run_package(path: Path, feeds: Mapping[str, NDArray[Any]], *, exact: bool = False) -> dict[str, NDArray[Any]]:
    """Return what the package at `path` gives for `feeds`, both by the file's own names.

    A stateful package starts from zeros. See `MilProgram.run` for `exact`.

    Raises:
        EngineError: as `open_package` and `MilProgram.run`.
    """
    program = open_package(path)
    return program.run(feeds, state=program.new_state(), exact=exact)


def _ports(
    names: Iterable[str], variables: Mapping[str, Any], pictures: Mapping[str, Literal["", "RGB", "BGR"]]
) -> tuple[Port, ...]:
    return tuple(
        Port(name, tuple(variables[name].shape), dtype_name(variables[name]), pictures.get(name, "")) for name in names
    )


def _picture(feature: Any) -> Literal["", "RGB", "BGR"]:
    if feature.type.WhichOneof("Type") != "imageType":
        return ""
    kind = feature.type.imageType
    return "BGR" if kind.colorSpace == kind.ColorSpace.Value("BGR") else "RGB"
