"""Licences of teachers and data against the licence of the bundle: what a card must warn of.

A student is treated as if the terms of its teachers and its data reached it. Whether the law sees a distilled student
so is not settled; some licences say so themselves. This is a check against oversight, no legal advice.

Where each classification comes from:

- SPDX identifiers and texts: https://spdx.org/licenses/. Identifiers that are not SPDX's:
  https://huggingface.co/docs/hub/repositories-licenses.
- Creative Commons: the elements in the name. NC: "not primarily intended for or directed towards commercial advantage"
  (BY-NC 4.0 sec. 1(i)); SA: adapted material under the same terms (BY-SA 4.0 sec. 3(b)); ND: adapted material must
  not be shared (BY-ND 4.0 sec. 2(a)(1)(B)).
- `apple-amlr`: LICENSE_MODELS of https://github.com/apple/ml-mobileclip (2025): "exclusively for Research Purposes",
  model derivatives likewise. MobileCLIP2's weights come under it.
- `apple-ascl`, in no list: LICENSE_weights_data of the same repository (2024), under which MobileCLIP's weights first
  came, names no purpose; the weights' pages were changed to `apple-amlr` later. Which holds, a person must find out.
- OpenRAIL, Llama and Gemma: commercial use is allowed, but restrictions of use go with every derivative (CreativeML
  Open RAIL-M sec. 4 and 5; Gemma Terms of Use sec. 3.1; Llama 3 Community License sec. 1.b).
- GPL, LGPL, MPL, EPL, EUPL, ODbL, CDLA-Sharing: derivatives under the same terms (GPL-3.0 sec. 5(c), MPL-2.0 sec. 3.1,
  ODbL-1.0 sec. 4.4). That some ask it for the covered files only is of no help with weights, which are one work.

What is in no list is unknown, and unknown is treated like research-only.
"""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Final

import msgspec

from pocketlens.core.errors import ExportError
from pocketlens.core.manifest import Manifest

__all__ = ["Conflict", "Restriction", "check_commercial", "licence_conflicts", "licence_warnings", "restrictions"]


class Restriction(StrEnum):
    """What a licence asks of what is made from the work, beyond notices and credit; mildest first."""

    USE = "use restrictions that must be passed on"
    SHARE_ALIKE = "share-alike"
    NO_DERIVATIVES = "no derivatives"
    NON_COMMERCIAL = "research or non-commercial use only"
    UNKNOWN = "unknown"


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """One reason why the bundle must not be used as its licence says, or not commercially.

    Attributes:
        subject: who brings it in: `teacher NAME`, `data` or `bundle`.
        licence: the licence as it was recorded.
        restriction: what of that licence is in the way.
        reason: a whole sentence.
    """

    subject: str
    licence: str
    restriction: Restriction
    reason: str

    def __str__(self) -> str:
        return f"{self.subject} ({self.licence}): {self.reason}"


_ORDER: Final = tuple(Restriction)
# Characters. What is longer is the text of a licence, no identifier; it also bounds the nesting of an expression.
_LONGEST: Final = 400

_PERMISSIVE: Final = """
0bsd afl-3.0 apache-2.0 blueoak-1.0.0 bsd-2-clause bsd-3-clause bsl-1.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
isc mit mit-0 odc-by-1.0 pddl-1.0 python-2.0 unlicense wtfpl zlib
"""
_SHARE_ALIKE: Final = """
cdla-sharing-1.0 epl-2.0 eupl-1.2 lgpl-2.1-only lgpl-2.1-or-later lgpl-3.0-only lgpl-3.0-or-later mpl-2.0 odbl-1.0
gpl-2.0-only gpl-2.0-or-later gpl-3.0-only gpl-3.0-or-later agpl-3.0-only agpl-3.0-or-later
gpl-2.0 gpl-3.0 agpl-3.0 lgpl-2.1 lgpl-3.0
"""
_USE_RESTRICTED: Final = """
openrail openrail++ bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma
"""
_NON_COMMERCIAL: Final = "apple-amlr polyform-noncommercial-1.0.0 fair-noncommercial-research-license"

_KNOWN: Final[Mapping[str, frozenset[Restriction]]] = {
    **dict.fromkeys(_PERMISSIVE.split(), frozenset()),
    **dict.fromkeys(_SHARE_ALIKE.split(), frozenset({Restriction.SHARE_ALIKE})),
    **dict.fromkeys(_USE_RESTRICTED.split(), frozenset({Restriction.USE})),
    **dict.fromkeys(_NON_COMMERCIAL.split(), frozenset({Restriction.NON_COMMERCIAL})),
}
_CREATIVE_COMMONS: Final = re.compile(r"cc-by(?P<nc>-nc)?(?:-(?P<more>sa|nd))?-\d\.\d(?:-[a-z]{2,3})?")
# Words by which own licences (LicenseRef-...) say that they are for research; anything else in them stays unknown.
_RESEARCH_WORDS: Final = re.compile(r"(?:^|-)(?:research|academic|noncommercial|non-commercial|nc|evaluation)(?:-|$)")


def restrictions(licence: str) -> frozenset[Restriction]:
    """Return what `licence` asks: an SPDX identifier or expression, or a Hugging Face licence tag.

    Case does not matter; blanks and underscores are hyphens. Of `A OR B` the milder is taken, of `A AND B` both;
    `WITH` an exception counts as without it. Free text is `UNKNOWN`; a permissive licence gives the empty set.
    """
    if len(licence) > _LONGEST:
        return frozenset({Restriction.UNKNOWN})
    return _expression(" ".join(licence.lower().replace("(", " ( ").replace(")", " ) ").split()))


def licence_conflicts(manifest: Manifest, *, commercial: bool = False) -> tuple[Conflict, ...]:
    """Return what stands between the bundle's licence and those of its teachers and data; empty where nothing does.

    Data are judged where `provenance` has an entry `data_licence`.

    Args:
        manifest: of the bundle.
        commercial: the bundle is meant to be used commercially. Then what limits the bundle to
            non-commercial use is a conflict even if its own licence says the same.
    """
    sources = [(f"teacher {teacher.id}", teacher.licence) for teacher in manifest.teachers]
    if "data_licence" in manifest.provenance:
        sources.append(("data", manifest.provenance["data_licence"]))
    found = list(_own(manifest.licence)) if commercial else []
    for subject, licence in dict.fromkeys(sources):  # one teacher may have both tasks
        for restriction in sorted(restrictions(licence), key=_ORDER.index):
            reason = _reason(restriction, licence, manifest.licence, commercial=commercial)
            if reason:
                found.append(Conflict(subject=subject, licence=licence, restriction=restriction, reason=reason))
    return tuple(found)


def licence_warnings(manifest: Manifest) -> list[str]:
    """Return the conflicts in `manifest` as lines for stderr."""
    return [f"licence conflict: {conflict}" for conflict in licence_conflicts(manifest)]


def check_commercial(manifest: Manifest) -> None:
    """Check that nothing recorded in `manifest` stands against commercial use.

    Raises:
        ExportError: something does; the message names every conflict.
    """
    conflicts = licence_conflicts(manifest, commercial=True)
    if conflicts:
        raise ExportError(
            f"commercial use of {manifest.name}",
            expected="teachers, data and a bundle licence whose terms allow it",
            found=" ".join(map(str, conflicts)).rstrip("."),
            remedy="Take a teacher with a permissive licence, or agree other terms with its owner and record "
            "them in its teacher.json. Without --commercial this is a warning in the model card.",
        )


def _own(licence: str) -> Iterator[Conflict]:
    """Yield what of the bundle's own licence stands against commercial use."""
    for restriction in restrictions(licence) & {Restriction.NON_COMMERCIAL, Restriction.UNKNOWN}:
        said = "is not known here" if restriction is Restriction.UNKNOWN else "does not allow it"
        reason = f"The bundle's own licence {said}; commercial use was asked for."
        yield Conflict(subject="bundle", licence=licence, restriction=restriction, reason=reason)


def _reason(restriction: Restriction, source: str, bundle: str, *, commercial: bool) -> str:
    """Return the sentence that speaks against a bundle under `bundle` made from `source`, or an empty text."""
    same = _spelling(source) == _spelling(bundle)
    match restriction:
        case Restriction.USE:
            return "" if same else f"Its use restrictions must be passed on, and {bundle} does not carry them."
        case Restriction.SHARE_ALIKE:
            return "" if same else f"What is made from it comes under the same terms, not under {bundle}."
        case Restriction.NO_DERIVATIVES:
            return "What is made from it must not be shared, and a student is made from its teachers and data."
        case Restriction.NON_COMMERCIAL:
            said = "It is for research or non-commercial use only, and so is what is made from it"
        case Restriction.UNKNOWN:
            said = "This licence is not known here: taken as research-only until somebody has read it"
    if commercial:
        return f"{said}; commercial use was asked for."
    # A bundle that says itself that it is for research promises nobody more than the teacher gave.
    return "" if Restriction.NON_COMMERCIAL in restrictions(bundle) else f"{said}; {bundle} allows more."


def _expression(text: str) -> frozenset[Restriction]:
    """Return the restrictions of an SPDX expression in lower case with blanks around parentheses."""
    choices = _split(text, " or ")
    if len(choices) > 1:
        return min(map(_expression, choices), key=_severity)
    parts = _split(text, " and ")
    if len(parts) > 1:
        return frozenset().union(*map(_expression, parts))
    bare = text.strip()
    if bare.startswith("( ") and bare.endswith(" )"):
        return _expression(bare[2:-2])
    return _single(_spelling(bare.partition(" with ")[0]))


def _severity(found: frozenset[Restriction]) -> list[int]:
    return sorted((_ORDER.index(restriction) for restriction in found), reverse=True)


def _split(text: str, word: str) -> list[str]:
    """Split `text` at `word` wherever no parenthesis is open."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(rf"[()]|{word}", text):
        if match.group() in {"(", ")"}:
            depth += 1 if match.group() == "(" else -1
        elif depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def _spelling(licence: str) -> str:
    """Return `licence` as the tables spell it: `Apache 2.0` and `apache_2.0` are `apache-2.0`."""
    return re.sub(r"[\s_]+", "-", licence.strip().lower())


def _single(name: str) -> frozenset[Restriction]:
    commons = _CREATIVE_COMMONS.fullmatch(name)
    if commons:
        more = {"sa": Restriction.SHARE_ALIKE, "nd": Restriction.NO_DERIVATIVES}
        asked = {Restriction.NON_COMMERCIAL} if commons["nc"] else set()
        return frozenset(asked | ({more[commons["more"]]} if commons["more"] else set()))
    if name in _KNOWN:
        return _KNOWN[name]
    own = name.removeprefix("licenseref-")
    for_research = own != name and _RESEARCH_WORDS.search(own)
    return frozenset({Restriction.NON_COMMERCIAL if for_research else Restriction.UNKNOWN})
