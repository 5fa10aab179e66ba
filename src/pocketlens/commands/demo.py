"""The whole way on the built-in data."""
__all__ = ["demo"]


def demo() -> int:
    return 0
