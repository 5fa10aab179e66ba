"""Static QDQ quantization of one graph, many times over: calibrated once, then any choice of layers."""

import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnx

from pocketlens.core.errors import DataError, ExportError
from pocketlens.export.quiet import quiet
from pocketlens.export.sensitivity.biases import bias_shifts, shift_biases
from pocketlens.export.sensitivity.layers import Layer, find_layers
from pocketlens.export.sensitivity.settings import Settings

if TYPE_CHECKING:
    from pocketlens.export.reference import Feed

__all__ = ["StaticQuantizer"]

_METHODS: Final = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


class StaticQuantizer:
    """Makes int8 graphs of one float graph.

    `onnxruntime.quantization.quantize_static` runs the calibration pictures for every graph that it
    writes; a search writes hundreds. Here the ranges are taken once, and only the insertion of the
    quantizers is repeated. The result is the same graph (a test compares the two).

    Args:
        path: the float ONNX file.
        feeds: calibration inputs, real ones.
        settings: how to quantize.

    Attributes:
        name: the file's, for messages.
        model: the float graph, its inner types inferred.
        layers: what `settings` quantizes, in the order of the graph.

    Raises:
        DataError: no feeds.
        ExportError: the graph has nothing to quantize, or calibration failed.
    """

    def __init__(self, path: Path, feeds: "Sequence[Feed]", settings: Settings) -> None:
        # Imported here: onnxruntime.quantization costs half a second.
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        if not feeds:
            raise DataError(
                f"calibration of {path.name}",
                expected="at least one input",
                found="none",
                remedy="Name pictures like those that the app will see.",
            )
        self.name = path.name
        self.settings = settings
        with tempfile.TemporaryDirectory() as folder:
            # Type inference writes a file beside the one that it reads.
            copy = Path(folder, "float.onnx")
            copy.write_bytes(path.read_bytes())
            self.model: onnx.ModelProto = load_model_with_shape_infer(copy)
            self.layers: tuple[Layer, ...] = find_layers(self.model, settings)
            self._ranges = _calibrate(copy, feeds, settings)
        everything = {name for layer in self.layers for name in layer.nodes}
        self._shifts = bias_shifts(self.model, feeds, everything, settings) if settings.bias_correction else {}

    def quantized(self, float_layers: Iterable[Layer] = ()) -> onnx.ModelProto:
        """Return the int8 graph in which `float_layers` stay in float; the float graph if those are all."""
        kept = {name for layer in float_layers for name in layer.nodes}
        return self._quantized({name for layer in self.layers for name in layer.nodes} - kept)

    def quantized_only(self, layers: Iterable[Layer]) -> onnx.ModelProto:
        """Return the float graph in which nothing but `layers` is int8."""
        return self._quantized({name for layer in layers for name in layer.nodes})

    def _quantized(self, nodes: Collection[str]) -> onnx.ModelProto:
        from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        if not nodes:
            return model
        shift_biases(model, self._shifts, nodes)
        settings = self.settings
        options: dict[str, Any] = {
            "MatMulConstBOnly": settings.constant_products_only,
            "ActivationSymmetric": settings.symmetric,
            "TensorQuantOverrides": {name: [dict(one) for one in many] for name, many in settings.overrides.items()},
        }
        with quiet():
            quantizer = QDQQuantizer(
                model,
                settings.per_channel,
                settings.weight_bits == 7,
                QuantType.QInt8,
                QuantType[f"Q{'' if settings.symmetric else 'U'}Int{settings.activation_bits}"],
                # A fresh one each time: the quantizer narrows the ranges in front of a ReLU in place.
                TensorsData(CalibrationMethod.MinMax, dict(self._ranges)),
                sorted(nodes),
                [],
                list(settings.operators),
                options,
            )
            quantizer.quantize_model()
        made: onnx.ModelProto = quantizer.model.model
        return made


def _calibrate(path: Path, feeds: "Sequence[Feed]", settings: Settings) -> dict[str, tuple[Any, Any]]:
    """Return the lowest and the highest value by tensor name."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc] # the base class has no types
        """The iterator that ONNX Runtime's calibration wants."""

        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> "Feed | None":
            return next(self._feeds, None)

    extra = {"percentile": settings.percentile} if settings.calibration == "percentile" else {}
    try:
        with quiet():
            calibrator = create_calibrator(
                path,
                list(settings.operators),
                augmented_model_path=str(path.with_name("augmented.onnx")),
                calibrate_method=CalibrationMethod[_METHODS[settings.calibration]],
                extra_options=extra,
            )
            calibrator.collect_data(Reader())
            data = calibrator.compute_data()
    except (ValueError, RuntimeError, KeyError) as error:
        raise ExportError(
            f"calibration of {path.name}",
            expected="finite ranges of all activations",
            found=f"{type(error).__name__}: {str(error)[:300]}",
            remedy="Check that the float graph runs on the calibration inputs.",
        ) from error
    return {name: tuple(data[name].range_value) for name in data}
