"""The build backend (PEP 517): maturin builds the command, and cargo the native parts before it, since maturin builds one crate."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any, Optional

import maturin
from maturin import get_requires_for_build_wheel, prepare_metadata_for_build_wheel  # noqa: F401

#: The folder of pyproject.toml.
_HERE = os.getcwd()
_PARTS = {"cowbell-python": "libcowbell_fork.so", "cowbell-python-counter": "libcowbell_count.so"}


def build_wheel(
    wheel_directory: str, config_settings: Optional[Any] = None, metadata_directory: Optional[str] = None
) -> str:
    """Builds both, and gives the name of the wheel."""
    # For maturin's cargo as well: it uses what was compiled then.
    os.environ.update(CARGO_PROFILE_RELEASE_STRIP="symbols", CARGO_PROFILE_RELEASE_DEBUG="0")
    if shutil.which("cargo") is None:
        raise SystemExit("cowbell-fork is built with Rust: install it from https://rustup.rs, or install the wheel")
    packages = [word for package in _PARTS for word in ("-p", package)]
    subprocess.run(["cargo", "build", "--release", "--locked", *packages], check=True)
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(_HERE, "target"))
    for part in _PARTS.values():
        shutil.copy(os.path.join(target, "release", part), os.path.join(_HERE, "tools/python/package/cowbell_fork", part))
    name: str = maturin.build_wheel(wheel_directory, config_settings, metadata_directory)
    return name
