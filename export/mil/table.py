"""Every MIL operator that can be run, by MIL's name."""

from typing import Final

from pocketlens.export.mil.arithmetic import ARITHMETIC
from pocketlens.export.mil.arrangement import ARRANGEMENT
from pocketlens.export.mil.layers import LAYERS
from pocketlens.export.mil.values import Operator
from pocketlens.export.mil.weights import QUANTIZATION

__all__ = ["OPERATORS"]

OPERATORS: Final[dict[str, Operator]] = {**ARITHMETIC, **ARRANGEMENT, **LAYERS, **QUANTIZATION}
