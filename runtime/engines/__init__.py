"""Inference engines, one file each. Nothing here imports an engine's package before it is asked for."""

from pocketlens.runtime.engines.engine import ENGINES, Engine, EngineName, open_engine

__all__ = ["ENGINES", "Engine", "EngineName", "open_engine"]
