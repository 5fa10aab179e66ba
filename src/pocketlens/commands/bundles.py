"""Bundles: export, verify, inspect."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlens.commands.options import AsJson
from pocketlens.console import out, out_json

__all__ = ["inspect", "verify"]

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.", show_default=False)]


def inspect(bundle: BundleArgument, as_json: AsJson = False) -> int:
    """Show what a bundle holds, after verifying every byte of it."""
    from pocketlens.core.bundle import load_bundle

    manifest = load_bundle(bundle).manifest
    if as_json:
        out_json(manifest)
        return 0
    spec = manifest.preprocess
    out(f"{manifest.name}  version {manifest.model_version}  licence {manifest.licence}")
    out(f"tasks {', '.join(manifest.tasks)}; embedding {manifest.embedding.dim} x float32, {manifest.embedding.metric}")
    out(f"pixels {spec.width_px} x {spec.height_px}, {spec.fit}, {spec.filter}")
    for teacher in manifest.teachers:
        out(f"teacher {teacher.id} ({teacher.task}), licence {teacher.licence}")
    out("role\ttarget\tprecision\tbytes\tp50 ms\tparity\tpreferred")
    for graph in manifest.graphs:
        latency = f"{graph.latency.p50_ms:.2f}" if graph.latency else "-"
        parity = f"{graph.parity.metric} {graph.parity.mean:.4f}" if graph.parity else "-"
        preferred = "yes" if graph.preferred else "no"
        out(f"{graph.role}\t{graph.target}\t{graph.precision}\t{graph.bytes}\t{latency}\t{parity}\t{preferred}")
        for note in graph.notes:
            out(f"\t{note}")
    return 0
