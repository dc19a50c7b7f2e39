"""What a test needs beyond Python packages."""

import importlib.util
import os
import resource
import shutil

import pytest


def require_tool(name: str) -> str:
    """The path of a program; without it the test is skipped, saying so, or fails where CI runs everything."""
    path = shutil.which(name)
    if path is None:
        unavailable(f"{name} is not installed")
    return str(path)


def require_package(name: str) -> None:
    """The same for a Python package of an extra."""
    if importlib.util.find_spec(name) is None:
        unavailable(f"the package {name} is not installed")


def unavailable(what: str) -> None:
    """Skip, or fail under CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI runs every test")
    pytest.skip(what)


def raise_file_limit(wanted: int = 8192) -> int:
    """Let this process, and those it starts from now on, open `wanted` files, if that is allowed; the limit now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
