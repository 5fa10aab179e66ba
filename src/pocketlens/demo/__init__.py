"""`pocketlens demo`: the whole way on the built-in data, and the page that reports it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlens.demo.report import ReportContent, write_report

__all__ = ["ReportContent", "write_report"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("pocketlens.demo.report"), name)
