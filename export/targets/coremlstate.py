"""CoreML ML programs for iOS 18 and macOS 15 whose caption cache is a state buffer."""

from dataclasses import dataclass

from pocketlens.export.targets.coreml import CoremlTarget

__all__ = ["CoremlStateTarget"]


@dataclass(frozen=True)
class CoremlStateTarget(CoremlTarget):
    """`CoremlTarget` with `stateful` set. Only the decode step differs from it, and needs iOS 18."""

    stateful: bool = True
