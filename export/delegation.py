"""How much of a lowered graph its accelerator takes over."""

from dataclasses import dataclass

__all__ = ["Delegation"]


@dataclass(frozen=True)
class Delegation:
    """What a backend took of a graph; the rest runs on ExecuTorch's portable CPU kernels.

    Attributes:
        backend: `XNNPACK`, `CoreML` or `Vulkan`.
        delegated: operators within the backend's parts.
        left: operators outside of them.
        parts: how many parts the backend got. Between two of them data goes through memory.
    """

    backend: str
    delegated: int
    left: int
    parts: int

    @property
    def share(self) -> float:
        """The share of the operators that the backend took, 0 to 1."""
        total = self.delegated + self.left
        return self.delegated / total if total else 0.0

    def sentence(self) -> str:
        """Return what a graph's record says about it."""
        return (
            f"{self.backend} runs {self.delegated} of {self.delegated + self.left} operators "
            f"({self.share:.1%}), in {self.parts} part{'s' if self.parts != 1 else ''}."
        )
