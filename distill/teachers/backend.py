"""A captioning teacher behind the caption service."""

from typing import Self

from pocketlens.core.preprocess import preprocess
from pocketlens.distill.teachers.opening import open_captioner
from pocketlens.distill.teachers.teacher import CaptioningTeacher

__all__ = ["TeacherBackend"]


class TeacherBackend:
    """Answers `CaptionBackend.caption` with a teacher. The teacher is called by one thread at a time."""

    def __init__(self, teacher: CaptioningTeacher) -> None:
        self._teacher = teacher
        self.model = teacher.id

    @classmethod
    def open(cls, name: str) -> Self:
        """Return the backend of the teacher in the folder `name`, or of the built-in one for `builtin`.

        Raises:
            TeacherError: the folder holds no captioner.
        """
        return cls(open_captioner(name))

    def caption(self, picture: bytes) -> str:
        """Return the teacher's caption of an encoded picture.

        Raises:
            PictureError: the picture was refused.
        """
        return self._teacher.caption(preprocess(picture, self._teacher.preprocess)[None])[0].text
