"""The wheel as a stranger meets it: in a fresh environment, far from this repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
BUILT_FROM = ["flask_byok", "templates", "pyproject.toml", "setup.cfg", "README.md", "LICENSE"]

# A host of few lines, run inside the fresh environment, in an empty folder.
RENDER_THE_DIALOG = """
import pathlib, re, sys
from importlib.metadata import distribution

from cachelib import FileSystemCache
from flask import Flask, render_template_string
from flask_session import Session

import flask_byok, flask_byok.templates

home = pathlib.Path(sys.prefix).resolve()
for package in (flask_byok, flask_byok.templates):
    found = pathlib.Path(package.__file__).resolve()
    assert found.is_relative_to(home), f"{package.__name__} comes from {found}"

points = distribution("flask-byok").entry_points
print(sorted(point.group for point in points if point.load()))

here = pathlib.Path.cwd()
app = Flask("host", instance_path=str(here / "instance"))
app.config.update(
    SECRET_KEY="made up for this test",
    SESSION_TYPE="cachelib",
    SESSION_CACHELIB=FileSystemCache(str(here / "sessions")),
    BYOK_ENCRYPTION_KEY="f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e",
)
Session(app)
flask_byok.BYOK(app)
page = "<head>{{ byok.head() }}</head>{{ byok.button() }}{{ byok.dialog() }}"
app.add_url_rule("/", view_func=lambda: render_template_string(page))

client = app.test_client()
html = client.get("/").text
for part in ('<dialog id="byok-dialog"', "<byok-settings", 'data-byok-provider="openai"'):
    assert part in html, f"{part} is not in {html}"
assets = set(re.findall(r'(?:href|src)="([^"]+[.](?:css|js)[?][^"]*)"', html))
assert len(assets) == 2, assets
for address in [*assets, "/api/providers/openapi.json"]:
    with client.get(address) as answer:
        assert answer.status_code == 200 and answer.data, address
print("rendered")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, so that no earlier build can add to it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    _pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(target), str(source))
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def stranger(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a new environment and return that environment's Python.

    Its dependencies are borrowed from this environment's folder, whose own `.pth` files, the
    editable install among them, are not read from there.
    """
    folder = tmp_path_factory.mktemp("stranger")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    _pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    subprocess.run(command, check=True)


def _sources() -> Iterator[str]:
    """Name, as the wheel does, every file that belongs to the package."""
    for folder, place in (("flask_byok", "flask_byok"), ("templates", "flask_byok/templates")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{place}/{path.relative_to(ROOT / folder).as_posix()}"


#: These requirements have an environment and a lock of their own.
FRAMEWORKS = ("frameworks", "tests/frameworks/requirements.lock")


def _declared(*groups: str) -> Iterator[Requirement]:
    """Give every requirement of the project, its extras and its dependency groups; or of some groups."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = project["dependency-groups"]
    declared = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *(lines for group, lines in named.items() if group not in FRAMEWORKS),
    ]
    for group in [named[group] for group in groups] or declared:
        for entry in group:
            if isinstance(entry, str) and not entry.startswith("flask-byok["):
                yield Requirement(entry)


def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    """Each module, template and asset of the sources ships, and nothing else does."""
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert shipped == set(_sources())


def test_wheel_works_far_from_the_repository(stranger: Path, tmp_path: Path) -> None:
    """In an environment that never saw the sources the package renders its dialog, and its entry points load."""
    command = [stranger, "-I", "-c", RENDER_THE_DIALOG]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['flask.commands', 'pytest11']", "rendered"]


@pytest.mark.parametrize("group_and_lock", [("requirements.lock",), FRAMEWORKS])
def test_lock_satisfies_every_declared_requirement(group_and_lock: tuple[str, ...]) -> None:
    """The lock file names a version for each requirement, extra and group, and it fits."""
    *groups, lock = group_and_lock
    lines = [line for line in (ROOT / lock).read_text().splitlines() if line[0] != "#"]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!+]+", line)] == []
    locked = {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}
    for requirement in _declared(*groups):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_dependencies_have_lower_bounds_only() -> None:
    """No requirement caps a version, so hosts can upgrade without waiting for a release."""
    bounds = {
        spec.operator
        for requirement in (*_declared(), *_declared("frameworks"))
        for spec in requirement.specifier
    }
    assert bounds == {">="}
