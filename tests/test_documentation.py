"""The documentation names everything that a user can meet, says the same as the code, and its links lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.main import get_command

from pocketlens.cli import app
from pocketlens.core import errors
from pocketlens.distill.recipe import Recipe
from pocketlens.distill.scenes import HELD_OUT_PAIRS, KINDS, distinct_scenes
from pocketlens.export.recipe import ExportRecipe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PARTS = ("core", "distill", "export", "runtime", "cloud_fallback", "telemetry")
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
CLI = (DOCS / "cli.md").read_text(encoding="utf-8")
RECIPES = (DOCS / "recipes.md").read_text(encoding="utf-8")


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for key, child in getattr(command, "commands", {}).items():
        yield f"{name} {key}", child
        yield from _commands(child, f"{name} {key}")


COMMANDS = dict(_commands(get_command(app), "pocketlens"))


def _section(page: str, title: str) -> str | None:
    """Return what stands between the heading `title` and the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(title)}$(.*?)(?=^#+ |\Z)", page, re.MULTILINE | re.DOTALL)
    return found and found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_section_that_names_all_its_options(name: str) -> None:
    section = _section(CLI, f"`{name}`")
    assert section is not None, f"docs/cli.md has no section `{name}`"
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "argument":
            assert f"`{parameter.metavar or parameter.name.upper()}`" in section, f"{name}: {parameter.name}"
        for option in parameter.opts if parameter.param_type_name == "option" else ():
            assert re.search(rf"`{re.escape(option)}[ `]", section), f"{name}: option {option}"


def test_the_exit_codes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (?:`(\w+)`)? *\|", CLI, re.MULTILINE)
    documented = {error: int(code) for code, error in rows if error}
    real = {name: getattr(errors, name) for name in errors.__all__}
    tree = {n: e for n, e in real.items() if isinstance(e, type) and issubclass(e, errors.PocketlensError)}
    assert documented == {name: error.exit_code for name, error in tree.items()}
    assert {int(code) for code, error in rows if not error} == {0, 2, 130}


def test_every_kind_of_refusal_is_documented() -> None:
    refusals = _section((DOCS / "preprocessing.md").read_text(encoding="utf-8"), "Refusals") or ""
    assert set(re.findall(r"^\| \d \| `(\w+)` \|", refusals, re.MULTILINE)) == set(errors.PICTURE_KINDS)


def test_the_environment_variables_are_those_of_the_code() -> None:
    sources = [path for part in (*PARTS, "src/pocketlens") for path in (ROOT / part).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in sources]
    used = {name for text in texts for name in re.findall(r'"(POCKETLENS_[A-Z_]+)"', text)}
    section = _section(CLI, "Environment variables") or ""
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == used


def _keys(table: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of a recipe with its default, `None` where it must be given."""
    for field in msgspec.structs.fields(table):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _keys(field.type, f"{prefix}{field.name}.")
        elif field.default_factory is not msgspec.NODEFAULT:
            yield prefix + field.name, field.default_factory()
        else:
            yield prefix + field.name, None if field.required else field.default


@pytest.mark.parametrize(
    ("title", "recipe"), [("Distillation recipe", Recipe), ("Export recipe", ExportRecipe)], ids=["distill", "export"]
)
def test_the_recipe_keys_and_defaults_are_those_of_the_code(title: str, recipe: type[msgspec.Struct]) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \|", _section(RECIPES, title) or "", re.MULTILINE)
    documented = {key: None if default == "required" else msgspec.json.decode(default) for key, default in rows}
    assert documented == {key: msgspec.to_builtins(default, builtin_types=()) for key, default in _plain(recipe)}


def _plain(recipe: type[msgspec.Struct]) -> Iterator[tuple[str, Any]]:
    for key, default in _keys(recipe):
        yield key, list(default) if isinstance(default, tuple) else default


def test_the_figures_of_the_scenes_are_those_of_the_code() -> None:
    page = (DOCS / "scenes.md").read_text(encoding="utf-8")
    assert f"{distinct_scenes():,} distinct scenes" in page
    rows = re.findall(r"(?<=\| )(\w+) \| ([a-z, ]+?) (?=\|)", _section(page, "Splits hold out combinations") or "")
    held_out = {(kind, colour) for kind, colours in rows if kind in KINDS for colour in colours.split(", ")}
    assert held_out == HELD_OUT_PAIRS


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert path.exists(), f"{target} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(_slug, headings), f"{target}: no such heading"


def test_there_are_pages_to_check() -> None:
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"} <= {page.name for page in PAGES}
    assert len(list((DOCS / "adr").glob("0*.md"))) >= 9


@pytest.mark.parametrize("record", sorted((DOCS / "adr").glob("*.md")), ids=lambda record: record.stem)
def test_a_decision_record_is_short_and_complete(record: Path) -> None:
    text = record.read_text(encoding="utf-8")
    assert text.startswith(f"# {record.name[:4]}: ")
    assert len(text.splitlines()) <= 25
    for part in ("Context", "Decision", "Consequence"):
        assert f"**{part}.**" in text
