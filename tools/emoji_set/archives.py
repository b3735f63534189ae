"""Reading some of the files of a folder or an archive, without unpacking it to the disk."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from emoji_set import BuildError

_ARCHIVES = ".deb, .tgz, .tar.gz, .tar, .whl or .zip"


def read_files(path: Path, *patterns: str) -> dict[str, bytes]:
    """The files whose path ends as one of ``patterns`` says (``annotations/en.xml``, ``assets/*.webp``), by path.

    ``path`` is a folder, an archive, or such a file itself. BuildError if it is not there, cannot be read, or lacks
    one of the patterns.
    """
    if not path.exists():
        raise BuildError(f"{path}: no such file or folder")
    try:
        files = dict(_open(path, patterns))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise BuildError(f"{path}: expected a folder, or an archive ({_ARCHIVES}): {error}") from error
    for pattern in patterns:
        if not any(PurePosixPath(name).match(pattern) for name in files):
            raise BuildError(f"{path}: expected files like {pattern} in it; got none")
    return files


def _open(path: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    def wanted(name: str) -> bool:
        return any(PurePosixPath(name).match(pattern) for pattern in patterns)

    if path.is_dir():
        for found in sorted(path.rglob("*")):
            if wanted(found.as_posix()) and found.is_file():
                yield found.as_posix(), found.read_bytes()
    elif wanted(path.as_posix()):
        yield path.as_posix(), path.read_bytes()
    elif path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if wanted(name):
                    yield name, archive.read(name)
    else:
        stream = io.BytesIO(_deb_tar(path) if path.suffix == ".deb" else path.read_bytes())
        with tarfile.open(fileobj=stream) as tar:
            for member in tar:
                if member.isfile() and wanted(member.name) and (file := tar.extractfile(member)):
                    yield member.name, file.read()


def _deb_tar(path: Path) -> bytes:
    """A Debian package's files as an uncompressed tar."""
    try:
        done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], capture_output=True, check=False)
    except FileNotFoundError:
        raise BuildError(f"{path}: expected the tool dpkg-deb to read it; name the unpacked folder instead") from None
    if done.returncode:
        raise BuildError(f"{path}: dpkg-deb cannot read it: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
