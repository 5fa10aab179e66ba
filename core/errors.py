"""Every error that pocketlens raises on purpose: one tree, each with a documented exit code.

::

    PocketlensError                 1   root; never raised itself
    ├── PictureError                3   a picture was refused; `.kind` is one of PICTURE_KINDS
    ├── BundleError                 4   a bundle cannot be used
    │   ├── BundleMissing           4   no bundle, or a file that it lists is not there
    │   ├── BundleTampered          4   a hash differs, a file is extra, a link is inside
    │   ├── BundleSchemaError       4   written by a newer pocketlens, or a field is malformed
    │   ├── BundleIncomplete        4   the bundle holds no graph that fits what was asked
    │   └── BundleCrashed           4   a graph killed the child process that tried it
    ├── RecipeError                 5   a recipe has an unknown key, a wrong type, a bad value
    ├── DataError                   6   a data set, shard or checkpoint does not fit
    ├── TeacherError                7   a teacher cannot be loaded or does not fit
    ├── TrainingError               8   training cannot go on (NaN, two runs in one folder)
    ├── ExportError                 9   a target cannot be produced
    │   ├── ParityGateFailed        9   an exported graph loses more than the recipe allows
    │   └── SpeedGateFailed         9   a quantized graph is slower than its fp32 twin
    ├── EngineError                10   an inference engine is missing or failed
    ├── StoreError                 11   the local store is unusable or belongs to another model
    ├── StorageFull                12   the disk is full; what was finished before is kept
    ├── CloudError                 13   the cloud side refused or failed
    │   └── ConsentRequired        13   sending was asked for, consent was not given
    └── TelemetryError             14   an event is undeclared or the log is unusable

Exit code 0 means all went well, 2 a wrong command line, and 1 that a batch finished with some
inputs refused (each is listed). A message always says what was expected, what was found and what
to do about it.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = [
    "PICTURE_KINDS",
    "BundleCrashed",
    "BundleError",
    "BundleIncomplete",
    "BundleMissing",
    "BundleSchemaError",
    "BundleTampered",
    "CloudError",
    "ConsentRequired",
    "DataError",
    "EngineError",
    "ExportError",
    "ParityGateFailed",
    "PictureError",
    "PocketlensError",
    "RecipeError",
    "SpeedGateFailed",
    "StorageFull",
    "StoreError",
    "TeacherError",
    "TelemetryError",
    "TrainingError",
    "storage_errors",
]

PICTURE_KINDS: Final = (
    "missing",  # no such file
    "not_a_file",  # a directory, a device, a socket
    "unreadable",  # permission or I/O error
    "empty",  # zero bytes
    "too_large",  # more bytes than the spec allows
    "unknown_type",  # the header belongs to no picture format that we know
    "type_not_allowed",  # a known format that the spec does not list
    "too_many_pixels",  # more pixels or frames, or more memory, than allowed: a bomb
    "bad_shape",  # a zero side, or an aspect ratio beyond the spec
    "corrupt",  # the header is fine, the data is truncated or broken
    "too_slow",  # the decoding process had no answer in time and was killed
    "crashed_decoder",  # the decoding process ended without an answer
)
"""The closed set of reasons for which a picture is refused."""


class PocketlensError(Exception):
    """Root of the tree. Catch it to catch everything that pocketlens raises on purpose.

    Args:
        what: the thing that is wrong, named so that a reader finds it (a path, a key, a graph).
        expected: what would have been right.
        found: what was there instead.
        remedy: what the reader can do about it.
    """

    exit_code: int = 1

    def __init__(self, what: str, *, expected: str, found: str, remedy: str) -> None:
        super().__init__(what, expected, found, remedy)
        self.what = what
        self.expected = expected
        self.found = found
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}; found {self.found}. {self.remedy}"

    def fields(self) -> dict[str, str | int]:
        """Return what the error says, field by field, for JSON: `error` (the class), `what`, …, `exit_code`."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "expected": self.expected,
            "found": self.found,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
        }

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and errors cross processes.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[PocketlensError], args: tuple[str, ...], state: dict[str, object]) -> PocketlensError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class PictureError(PocketlensError):
    """A picture was refused. `kind` is one of `PICTURE_KINDS`."""

    exit_code = 3

    def __init__(self, what: str, *, kind: str, expected: str, found: str, remedy: str) -> None:
        super().__init__(what, expected=expected, found=found, remedy=remedy)
        self.kind = kind

    def fields(self) -> dict[str, str | int]:
        """Return the fields of every error and the `kind`."""
        return {**super().fields(), "kind": self.kind}


class BundleError(PocketlensError):
    """A bundle cannot be used."""

    exit_code = 4


class BundleMissing(BundleError):
    """There is no bundle at the path, or a file that its manifest lists is absent."""


class BundleTampered(BundleError):
    """A hash differs, a file is not in the manifest, or a link stands where a file should."""


class BundleSchemaError(BundleError):
    """The manifest was written for a newer pocketlens, or a field of it is malformed."""


class BundleIncomplete(BundleError):
    """The bundle holds no graph for the task, target or precision that was asked for."""


class BundleCrashed(BundleError):
    """A graph killed the child process that tried it, or went over its limits of memory and time."""


class RecipeError(PocketlensError):
    """A recipe has an unknown key, a wrong type or a value out of range."""

    exit_code = 5


class DataError(PocketlensError):
    """A data set, a shard or a checkpoint does not fit what reads it."""

    exit_code = 6


class TeacherError(PocketlensError):
    """A teacher folder cannot be read, or the teacher does not fit the recipe."""

    exit_code = 7


class TrainingError(PocketlensError):
    """Training cannot go on. The last good checkpoint is kept."""

    exit_code = 8


class ExportError(PocketlensError):
    """A target cannot be produced from this student."""

    exit_code = 9


class ParityGateFailed(ExportError):
    """An exported graph answers too differently from the eager student."""


class SpeedGateFailed(ExportError):
    """A quantized graph is slower than its fp32 twin and the recipe does not accept that."""


class EngineError(PocketlensError):
    """An inference engine is not installed, cannot load a graph, or failed while running."""

    exit_code = 10


class StoreError(PocketlensError):
    """The local store cannot be opened, is damaged, or belongs to another model version."""

    exit_code = 11


class StorageFull(PocketlensError):
    """The disk (or a quota) is full. Nothing that was finished before is lost."""

    exit_code = 12


class CloudError(PocketlensError):
    """The cloud side refused the request or did not answer."""

    exit_code = 13


class ConsentRequired(CloudError):
    """Sending was asked for while consent is not given: nothing left the device."""


class TelemetryError(PocketlensError):
    """An event is not declared in events.yaml, or the local log cannot be used."""

    exit_code = 14


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" (and a quota's refusal) while writing `path` into `StorageFull`.

    Other `OSError`s pass through: what they mean is for the caller to say.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFull(
            f"writing {path}",
            expected="free space on the disk",
            found=error.strerror or "a full disk",
            remedy="Free some space and run the same command again; finished work is kept.",
        ) from error
