"""Importing the packages is light, and a missing extra is one typed error."""

import subprocess
import sys
from types import ModuleType

import pytest

import pocketlens.cloud_fallback
import pocketlens.cloud_fallback.service
import pocketlens.telemetry

HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "onnxruntime",
    "httpx",
    "stamina",
    "fastapi",
    "uvicorn",
    "PIL",
}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_importing_the_packages_loads_nothing_heavy() -> None:
    code = (
        "import sys, pocketlens.cloud_fallback, pocketlens.cloud_fallback.service, pocketlens.telemetry\n"
        "print(*sys.modules)"
    )
    assert HEAVY.isdisjoint(python(code).split())


def test_everything_but_the_cli_works_where_torch_cannot_be_imported() -> None:
    code = (
        "import sys\n"
        "sys.modules.update(torch=None, torchvision=None, transformers=None)\n"
        "from pocketlens.cloud_fallback import CloudCaptioner\n"
        "from pocketlens.cloud_fallback.service import OpenAIUpstream, create_app, serve\n"
        "print(CloudCaptioner.__name__, serve.__name__)"
    )
    assert python(code) == "CloudCaptioner serve"


@pytest.mark.parametrize(
    ("missing", "package", "name", "remedy"),
    [
        ("httpx", "cloud_fallback", "CloudCaptioner", "pip install httpx stamina"),
        ("fastapi", "cloud_fallback.service", "create_app", "pocketlens[service]"),
        ("uvicorn", "cloud_fallback.service", "serve", "pocketlens[service]"),
    ],
)
def test_a_missing_package_is_one_typed_error(missing: str, package: str, name: str, remedy: str) -> None:
    code = (
        f"import sys\nsys.modules['{missing}'] = None\n"
        "from pocketlens.core.errors import CloudError\n"
        f"try:\n    from pocketlens.{package} import {name}\n"
        "except CloudError as error:\n    print(error)"
    )
    assert remedy in python(code)


@pytest.mark.parametrize(
    "package", [pocketlens.cloud_fallback, pocketlens.cloud_fallback.service, pocketlens.telemetry]
)
def test_every_public_name_is_there_and_no_other_is_made_up(package: ModuleType) -> None:
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(package, "nonsense")  # noqa: B009 - the access is the test
