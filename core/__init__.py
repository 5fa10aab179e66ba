"""The contract that training, export, runtime and service share. Imports nothing heavier than numpy and Pillow."""

from pocketlens.core.captions import Caption, CaptionFallback, CaptionSource
from pocketlens.core.errors import PocketlensError
from pocketlens.core.events import NULL_SINK, Event, EventSink

__all__ = ["NULL_SINK", "Caption", "CaptionFallback", "CaptionSource", "Event", "EventSink", "PocketlensError"]
