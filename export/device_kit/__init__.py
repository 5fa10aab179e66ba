"""The device kit: C99 headers that give on a phone the pixels and ids that pocketlens gives here."""

from pocketlens.export.device_kit.kit import DEVICE_KIT_FOLDER, write_device_kit

__all__ = ["DEVICE_KIT_FOLDER", "write_device_kit"]
