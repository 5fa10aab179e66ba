"""Integrity: keygen, sign, pack, install."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlens.commands.options import AsJson
from pocketlens.console import out, out_json, say

__all__ = ["Keys", "install", "keygen", "pack", "sign"]

_Bundle = Annotated[
    Path,
    # readable=False: not to be checked there, for what cannot be read is a typed error of ours
    typer.Argument(metavar="BUNDLE", help="The bundle's folder.", show_default=False, readable=False),
]
Keys = Annotated[
    list[Path] | None,
    typer.Option(
        "--key",
        help="A public key (.pub) that must have signed the bundle; several: one of them.",
        show_default=False,
        readable=False,
    ),
]


def keygen(
    key: Annotated[Path, typer.Argument(metavar="KEY", help="The new private key's file.", show_default=False)],
    as_json: AsJson = False,
) -> int:
    """Make an Ed25519 key: the private one in KEY, the public one in KEY.pub."""
    from pocketlens.core.signing import generate_key

    public = generate_key(key)
    if as_json:
        out_json({"private_key": str(key), "public_key": f"{key}.pub", "key": str(public)})
    else:
        out(str(public))
        say(f"{key} is not encrypted: keep it where only the one who releases can read it.")
    return 0


def sign(
    bundle: _Bundle,
    key: Annotated[
        Path, typer.Option("--key", help="The private key that `keygen` made.", show_default=False, readable=False)
    ],
    model_signing_key: Annotated[
        Path | None,
        typer.Option(
            help="Sign for publishing as well, in OpenSSF's model-signing format, with this P-256 key (PEM).",
            show_default=False,
            readable=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Sign a bundle after verifying every byte of it."""
    from pocketlens.core.signing import sign_bundle

    signed = sign_bundle(bundle, key)
    published = None
    if model_signing_key is not None:
        from pocketlens.export.publishing import sign_for_publishing

        published = sign_for_publishing(signed.root, model_signing_key)
    if as_json:
        out_json({"bundle": str(bundle), "key": str(signed.signer), "model_signing": published and str(published)})
    else:
        out(f"{bundle}\t{signed.signer}")
        if published is not None:
            out(f"{published}\tmodel-signing")
    return 0


def pack(
    bundle: _Bundle,
    out_file: Annotated[Path, typer.Option("--out", "-o", help="The archive (.zip).", show_default=False)],
    key: Keys = None,
    as_json: AsJson = False,
) -> int:
    """Write a bundle as one .zip file; the same bundle gives the same bytes."""
    from pocketlens.core.archive import pack_bundle
    from pocketlens.core.bundle import file_sha256
    from pocketlens.core.signature import read_public_key

    path = pack_bundle(bundle, out_file, trusted_keys=[read_public_key(file) for file in key or ()])
    size, digest = path.stat().st_size, file_sha256(path)
    if as_json:
        out_json({"archive": str(path), "bytes": size, "sha256": digest})
    else:
        out(f"{path}\t{size}\t{digest}")
    return 0


def install(
    archive: Annotated[
        Path, typer.Argument(metavar="ARCHIVE", help="What `pack` wrote.", show_default=False, readable=False)
    ],
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The folder for the bundle.", show_default=False, readable=False)
    ],
    key: Keys = None,
    allow_rollback: Annotated[
        bool, typer.Option("--allow-rollback", help="Accept an older release, or another model, than is installed.")
    ] = False,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Try every graph in a child process before the bundle is used.")
    ] = True,
    as_json: AsJson = False,
) -> int:
    """Verify an archive and put the bundle in its place in one step; a kill leaves the old one or the new one."""
    from pocketlens.core.archive import install_archive
    from pocketlens.core.signature import read_public_key
    from pocketlens.runtime.probe import probe_graphs

    installed = install_archive(
        archive,
        bundle,
        trusted_keys=[read_public_key(file) for file in key or ()],
        allow_rollback=allow_rollback,
        check=probe_graphs if probe else None,
    )
    manifest, signer = installed.manifest, installed.signer
    if as_json:
        out_json(
            {
                "bundle": str(installed.root),
                "name": manifest.name,
                "model_version": manifest.model_version,
                "release": manifest.release,
                "key": signer and str(signer),
            }
        )
    else:
        out(f"{installed.root}\t{manifest.name}\t{manifest.model_version}\t{manifest.release}\t{signer or 'unsigned'}")
    return 0
