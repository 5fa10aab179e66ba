"""Teachers: the models that students learn from. They run once and write a reinforced data set."""

from pocketlens.distill.teachers.teacher import CaptioningTeacher, EmbeddingTeacher, TeacherCaption

__all__ = ["CaptioningTeacher", "EmbeddingTeacher", "TeacherCaption"]
