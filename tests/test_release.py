"""What is released: the sdist holds what a wheel is built of, the wheel the whole package, and the workflow that
builds both follows pyproject.toml."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CLASSIFIED = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)


def table(name: str) -> str:
    """A table of pyproject.toml, as text: Python 3.10 has no TOML reader."""
    return re.split(r"^\[", PYPROJECT.partition(f"\n[{name}]\n")[2], maxsplit=1, flags=re.M)[0]


# ------------------------------------------------------------------------------------------------------------- builds


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1", "BUILD_CUDA": "0", **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the repository holds, for a build leaves things in the tree that it is made from."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]
    done = subprocess.run(listed, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("needs a git checkout, to copy what belongs to it")
    copy = tmp_path_factory.mktemp("source")
    for name in done.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/golden/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def package(tracked: Path) -> set[str]:
    return {str(file.relative_to(tracked)) for file in (tracked / "hqtvae_fast").rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def sdist(tracked: Path, package: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked."""
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})", cwd=tracked)
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(out, filter="data")
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return folder


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the sdist alone; what compiled when the tests were installed is not compiled again."""
    out, built = tmp_path_factory.mktemp("wheel"), list((ROOT / "hqtvae_fast").glob("_cpu.abi3.so"))
    library = sdist / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "hqtvae_fast"
    library.mkdir(parents=True)
    for file in built:
        shutil.copyfile(file, library / file.name)
    run(*(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, sdist), cwd=out)
    (file,) = out.glob("*.whl")
    return file


def test_an_sdist_holds_what_a_wheel_is_built_of(tracked, package, sdist):
    csrc = {str(file.relative_to(tracked)) for file in (tracked / "csrc").rglob("*") if file.is_file()}
    assert {name for name in package | csrc if not (sdist / name).is_file()} == set()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "setup.py"} <= {file.name for file in sdist.iterdir()}
    assert not (sdist / "tests").exists()  # half of them would come along, without what they read


def test_a_wheel_has_them_all_and_the_kernels(package, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert package <= names
    assert any(re.fullmatch(r"hqtvae_fast/train/presets/stage1/\w+\.yaml", name) for name in package)
    assert {f"hqtvae_fast/_cuda_sources/{file.name}" for file in (ROOT / "csrc" / "cuda").glob("*.cu")} <= names
    assert ("hqtvae_fast/_cpu.abi3.so" in names) == (shutil.which("c++") is not None)


def test_one_wheel_serves_every_python(wheel):
    oldest = CLASSIFIED[0].replace(".", "")
    assert f"-cp{oldest}-abi3-" in wheel.name
    assert f'requires-python = ">={CLASSIFIED[0]}"' in PYPROJECT


# ------------------------------------------------------------------------------------------------------- the workflow


@pytest.fixture(scope="module")
def workflow() -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))


def commands(job: dict) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_the_wheel_is_tried_with_every_python_that_is_said_to_work():
    build = re.search(r'^build = "(.*)"$', table("tool.cibuildwheel"), re.M)
    assert build[1].split() == [f"cp{version.replace('.', '')}-*" for version in CLASSIFIED]


def test_the_wheel_is_installed_and_draws():
    assert "cpu_library.library()" in table("tool.cibuildwheel")
    assert "hqtvae sample demo --prompt" in table("tool.cibuildwheel")
    assert 'BUILD_CPU = "1"' in table("tool.cibuildwheel")


def test_torch_comes_from_the_index_that_the_workflow_names(workflow):
    assert set(workflow["env"]) == {"TORCH_INDEX"}
    assert 'environment-pass = ["TORCH_INDEX"]' in table("tool.cibuildwheel.linux")
    assert '--index-url "$TORCH_INDEX" torch' in table("tool.cibuildwheel")


def test_a_tag_of_the_version_starts_a_release(workflow):
    started = workflow[True]  # YAML reads `on` so
    assert started["push"] == {"tags": ["v*"]}
    assert "branches" not in started["push"]
    version = re.search(r'^version = "(.*)"$', PYPROJECT, re.M)
    asked = re.search(r"grep -Fx \"(.*)\" pyproject.toml", commands(workflow["jobs"]["sdist"]))
    line = asked[1].replace('\\"', '"').replace("${GITHUB_REF_NAME#v}", version[1])
    assert line in PYPROJECT.splitlines()


def test_nothing_is_published_that_was_not_built_and_checked(workflow):
    jobs = workflow["jobs"]
    needs = {name: job.get("needs", []) for name, job in jobs.items()}
    assert needs == {"sdist": [], "wheel": "sdist", "github": ["sdist", "wheel"], "pypi": "github"}
    for name in ("sdist", "wheel"):
        assert "check --strict" in commands(jobs[name])
        assert "if" not in jobs[name]
    for name in ("github", "pypi"):
        assert jobs[name]["if"] == "github.ref_type == 'tag'"


def test_only_what_publishes_may_write_and_no_password_is_kept(workflow):
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"}
    assert jobs["github"]["permissions"] == {"contents": "write"}
    assert jobs["pypi"]["permissions"] == {"contents": "read", "id-token": "write"}
    assert jobs["pypi"]["environment"] == "pypi"
    assert not any("permissions" in jobs[name] for name in ("sdist", "wheel"))
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("awk") is None, reason="awk is not installed")
def test_a_release_says_what_the_changelog_says_of_it(workflow, tmp_path):
    version = re.search(r'^version = "(.*)"$', PYPROJECT, re.M)
    command = next(line for line in commands(workflow["jobs"]["github"]).splitlines() if line.startswith("awk"))
    shutil.copyfile(ROOT / "CHANGELOG.md", tmp_path / "CHANGELOG.md")
    run("bash", "-c", command, cwd=tmp_path, GITHUB_REF_NAME=f"v{version[1]}")
    notes = (tmp_path / "notes.md").read_text(encoding="utf-8")
    assert len(notes.split()) > 20
    assert "\n## " not in notes
