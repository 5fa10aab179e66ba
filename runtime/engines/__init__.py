"""Inference engines, one file each. Nothing here imports an engine's package before it is asked for."""

from pocketlens.runtime.engines.engine import Engine, open_engine
from pocketlens.runtime.engines.specs import ENGINES, EngineName, EngineSpec

__all__ = ["ENGINES", "Engine", "EngineName", "EngineSpec", "open_engine"]
