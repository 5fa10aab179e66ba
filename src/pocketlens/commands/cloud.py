"""The cloud side: a caption service."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens.commands.distilling import needs_distill
from pocketlens.core.errors import CloudError, TeacherError

if TYPE_CHECKING:
    from pocketlens.cloud_fallback.service import CaptionBackend

__all__ = ["serve"]


def serve(
    teacher: Annotated[str | None, typer.Option(help="`builtin`, or the folder of a Hugging Face captioner.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="A bundle.")] = None,
    upstream: Annotated[str | None, typer.Option(help="Base address of an OpenAI-compatible server.")] = None,
    model: Annotated[str, typer.Option(help="With --upstream: the model's name there.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on; there is no authentication.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8017,
) -> int:
    """Serve captions over HTTP from one of: a teacher, a bundle, an upstream (key in POCKETLENS_API_KEY)."""
    from pocketlens.cloud_fallback.service import create_app
    from pocketlens.cloud_fallback.service import serve as run

    run(create_app(_backend(teacher, bundle, upstream, model)), host=host, port=port)
    return 0


def _backend(teacher: str | None, bundle: Path | None, upstream: str | None, model: str) -> "CaptionBackend":
    from pocketlens.cloud_fallback.service import BundleBackend, OpenAIUpstream

    chosen = [name for name, value in (("--teacher", teacher), ("--bundle", bundle), ("--upstream", upstream)) if value]
    if len(chosen) != 1:
        raise CloudError(
            "pocketlens serve",
            expected="exactly one of --teacher, --bundle, --upstream",
            found=" and ".join(chosen) or "none of them",
            remedy="Say what should write the captions.",
        )
    if upstream is not None:
        return OpenAIUpstream(upstream, model=model, api_key=os.environ.get("POCKETLENS_API_KEY", ""))
    if bundle is not None:
        from pocketlens.runtime import load

        lens = load(bundle)
        return BundleBackend(lens, model=lens.model_version)
    with needs_distill("pocketlens serve --teacher", TeacherError):
        from pocketlens.distill.teachers.backend import TeacherBackend

    return TeacherBackend.open(str(teacher))
