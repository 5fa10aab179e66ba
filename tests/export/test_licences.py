from pathlib import Path

import msgspec
import pytest

from pocketlens.core.bundle import Manifest, TeacherRecord
from pocketlens.core.errors import ExportError
from pocketlens.export.licences import (
    Restriction,
    check_commercial,
    licence_conflicts,
    licence_warnings,
    restrictions,
)
from tests.core.small_bundle import small_manifest, stage


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return small_manifest(stage(tmp_path / "staged"))


def _with(manifest: Manifest, teacher: str, licence: str = "Apache-2.0", **provenance: str) -> Manifest:
    record = TeacherRecord(id="someone", licence=teacher, task="embedding")
    return msgspec.structs.replace(manifest, teachers=(record,), licence=licence, provenance=provenance)


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", set()),
        ("Apache-2.0", set()),
        ("apache 2.0", set()),
        ("Apache_2.0", set()),
        ("CC0-1.0", set()),
        ("cc-by-4.0", set()),
        ("CC-BY-3.0-IGO", set()),
        ("CC-BY-SA-4.0", {Restriction.SHARE_ALIKE}),
        ("GPL-3.0-or-later", {Restriction.SHARE_ALIKE}),
        ("GPL-2.0-only WITH Classpath-exception-2.0", {Restriction.SHARE_ALIKE}),
        ("cc-by-nd-4.0", {Restriction.NO_DERIVATIVES}),
        ("cc-by-nc-4.0", {Restriction.NON_COMMERCIAL}),
        ("CC-BY-NC-SA-3.0", {Restriction.NON_COMMERCIAL, Restriction.SHARE_ALIKE}),
        ("CC-BY-NC-ND-4.0", {Restriction.NON_COMMERCIAL, Restriction.NO_DERIVATIVES}),
        ("apple-amlr", {Restriction.NON_COMMERCIAL}),
        ("LicenseRef-acme-research", {Restriction.NON_COMMERCIAL}),
        ("LicenseRef-NC", {Restriction.NON_COMMERCIAL}),
        ("creativeml-openrail-m", {Restriction.USE}),
        ("gemma", {Restriction.USE}),
        ("MIT OR GPL-3.0-only", set()),
        ("cc-by-nc-4.0 OR CC-BY-SA-4.0", {Restriction.SHARE_ALIKE}),
        ("MIT AND cc-by-nc-4.0", {Restriction.NON_COMMERCIAL}),
        ("(MIT OR apple-amlr) AND (Apache-2.0)", set()),
        ("(MIT AND apple-amlr) OR CC-BY-SA-4.0", {Restriction.SHARE_ALIKE}),
    ],
)
def test_licences_are_classified(licence: str, expected: set[Restriction]) -> None:
    assert restrictions(licence) == expected


@pytest.mark.parametrize(
    "licence",
    [
        "unknown",
        "other",
        "",
        "apple-ascl",
        "LicenseRef-acme",
        "LicenseRef-researchers-club",
        "see the README",
        "MIT, more or less",
        "mit-but-not-quite",
        "MIT AND unknown-1.0",
        "cc-by-nc",
        "research",
        "((MIT",
    ],
)
def test_what_is_in_no_list_is_unknown_and_never_permissive(licence: str) -> None:
    assert Restriction.UNKNOWN in restrictions(licence)


@pytest.mark.parametrize("depth", [150, 100_000])
def test_a_deep_expression_ends_and_is_never_milder_than_what_it_holds(depth: int) -> None:
    found = restrictions("(" * depth + "apple-amlr" + ")" * depth)
    assert found in ({Restriction.NON_COMMERCIAL}, {Restriction.UNKNOWN})


@pytest.mark.parametrize("licence", ["MIT", "Apache-2.0", "BSD-3-Clause", "CC-BY-4.0"])
def test_permissive_teachers_bring_no_conflict_and_pass_the_commercial_check(manifest: Manifest, licence: str) -> None:
    assert licence_conflicts(_with(manifest, licence)) == ()
    assert licence_warnings(_with(manifest, licence)) == []
    check_commercial(_with(manifest, licence, data_licence="CC0-1.0"))


@pytest.mark.parametrize(
    "licence",
    ["apple-amlr", "cc-by-nc-4.0", "LicenseRef-x-research", "unknown", "CC-BY-SA-4.0", "CC-BY-ND-4.0", "gemma"],
)
def test_a_restricted_teacher_under_a_permissive_bundle_is_a_warning_and_an_error_when_commercial(
    manifest: Manifest, licence: str
) -> None:
    (conflict,) = licence_conflicts(_with(manifest, licence))
    assert (conflict.subject, conflict.licence) == ("teacher someone", licence)
    (line,) = licence_warnings(_with(manifest, licence))
    assert line.startswith(f"licence conflict: teacher someone ({licence}): ")
    with pytest.raises(ExportError, match=r"teacher someone") as caught:
        check_commercial(_with(manifest, licence))
    assert licence in caught.value.found
    assert caught.value.exit_code == 9


def test_share_alike_and_use_restrictions_are_kept_by_the_same_licence(manifest: Manifest) -> None:
    for licence in ("CC-BY-SA-4.0", "gemma"):
        same = _with(manifest, licence, licence=licence)
        assert licence_conflicts(same) == ()
        check_commercial(same)
    assert licence_conflicts(_with(manifest, "CC-BY-SA-4.0", licence="cc by-sa 4.0")) == ()
    assert licence_conflicts(_with(manifest, "CC-BY-SA-4.0", licence="GPL-3.0-only"))


def test_a_research_bundle_from_a_research_teacher_conflicts_only_when_commercial(manifest: Manifest) -> None:
    research = _with(manifest, "apple-amlr", licence="cc-by-nc-4.0")
    assert licence_conflicts(research) == ()
    assert [conflict.subject for conflict in licence_conflicts(research, commercial=True)] == [
        "bundle",
        "teacher someone",
    ]
    with pytest.raises(ExportError):
        check_commercial(research)


def test_a_non_commercial_bundle_does_not_cure_share_alike_or_no_derivatives(manifest: Manifest) -> None:
    assert [c.restriction for c in licence_conflicts(_with(manifest, "CC-BY-NC-SA-4.0", licence="cc-by-nc-4.0"))] == [
        Restriction.SHARE_ALIKE
    ]
    assert [
        c.restriction for c in licence_conflicts(_with(manifest, "CC-BY-NC-ND-4.0", licence="CC-BY-NC-ND-4.0"))
    ] == [Restriction.NO_DERIVATIVES]


def test_commercial_use_of_a_bundle_without_a_known_licence_is_refused(manifest: Manifest) -> None:
    bare = msgspec.structs.replace(manifest, licence="unknown")
    assert licence_conflicts(bare) == ()
    with pytest.raises(ExportError, match="bundle"):
        check_commercial(bare)


def test_the_licence_of_the_data_counts_like_a_teachers(manifest: Manifest) -> None:
    (conflict,) = licence_conflicts(_with(manifest, "MIT", data_licence="cc-by-nc-4.0"))
    assert conflict.subject == "data"
    assert licence_conflicts(_with(manifest, "MIT", data_licence="CC0-1.0")) == ()


def test_one_teacher_with_two_tasks_is_named_once_and_two_teachers_twice(manifest: Manifest) -> None:
    embedder = TeacherRecord(id="a", licence="apple-amlr", task="embedding")
    captioner = msgspec.structs.replace(embedder, task="captioning")
    other = TeacherRecord(id="b", licence="unknown", task="captioning")
    assert len(licence_conflicts(msgspec.structs.replace(manifest, teachers=(embedder, captioner)))) == 1
    both = licence_conflicts(msgspec.structs.replace(manifest, teachers=(embedder, other)))
    assert [conflict.subject for conflict in both] == ["teacher a", "teacher b"]
