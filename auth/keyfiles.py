"""Signing keys in files: PEM, or `.secret` for HS256. For one machine, or for an operator who brings keys from a vault.

A file `20261124T090000Z-<name>.pem` signs from that time on, `signing-key.pem` since ever. Several workers may start at
once on an empty directory. Each makes a key, exactly one file gets the name (a hard link is created or fails, nothing
between), and all of them read that file.
"""

import asyncio
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Final

from auth.audit import SYSTEM, Actor, AuditRecord, log_record
from auth.database import Database, DatabaseUnavailable
from auth.keys import Algorithm, RingKey, SigningKey, UnusableKey
from auth.keystore import KeyAdded, KeyStoreError, KeyStoreReadOnly, UnknownKid

KEY_FILE: Final = "signing-key.pem"
SECRET_FILE: Final = "signing-key.secret"  # noqa: S105  # a name
_LOCK_FILE: Final = ".lock"
_TIME: Final = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"(?:(\d{8}T\d{6}Z)-.+|signing-key)\.(?:pem|secret)")


class KeyFileError(KeyStoreError):
    """A key file cannot be used as it is; the message names it and says what to do."""


class FileKeyStore:
    """The key files of a directory.

    Args:
        directory: made if it is not there.
        database: for the audit log.
    """

    def __init__(self, directory: Path, database: Database) -> None:
        self._directory = directory
        self._database = database

    async def load(self) -> list[RingKey]:
        """Every key there is.

        Raises:
            KeyFileError: the directory or a file cannot be read, is open to others, or holds no key that can sign.
        """
        return await asyncio.to_thread(load, self._directory)

    async def add(self, key: SigningKey, activates_at: float, *, known: int, by: Actor = SYSTEM) -> None:
        """As in the protocol.

        Raises:
            KeyStoreReadOnly: the directory cannot be written.
        """
        await asyncio.to_thread(self._add, key, activates_at, known)
        await self._record(by.did("signing_key.rotate", "signing_key", key.kid, algorithm=key.algorithm))

    async def revoke(self, kid: str, *, by: Actor) -> None:
        """As in the protocol: removes the file."""
        await asyncio.to_thread(self._remove, kid)
        await self._record(by.did("signing_key.revoke", "signing_key", kid))

    async def _record(self, record: AuditRecord) -> None:
        """A file has no transaction to share with the database. Where that is away, the log line has to do."""
        try:
            async with self._database.transaction(record):
                pass
        except DatabaseUnavailable:
            log_record(record)

    def _add(self, key: SigningKey, activates_at: float, known: int) -> None:
        with self._writing():
            if len(load(self._directory)) != known:
                raise KeyAdded
            suffix = "secret" if key.algorithm == "HS256" else "pem"
            name = f"signing-key.{suffix}"
            if activates_at > 0:
                name = f"{datetime.fromtimestamp(activates_at, UTC):{_TIME}}-{key.kid[:8]}.{suffix}"
            _create(self._directory / name, key)

    def _remove(self, kid: str) -> None:
        with self._writing():
            same = [path for path in key_files(self._directory) if _read(path).kid == kid]
            for path in same:  # a copy would bring it back
                path.unlink()
            _sync_directory(self._directory)
        if not same:
            raise UnknownKid

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One process at a time."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise KeyStoreReadOnly(f"{self._directory} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        except OSError as error:
            raise KeyStoreReadOnly(f"{error.filename or self._directory}: {error.strerror}") from error
        finally:
            os.close(descriptor)


def load(directory: Path) -> list[RingKey]:
    """The keys of a directory; none where there is none.

    Raises:
        KeyFileError: as of `FileKeyStore.load`.
    """
    try:
        if not directory.exists():
            return []
        mode = directory.stat().st_mode
        # In a sticky directory others may add files but not replace ours.
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
            raise KeyFileError(f"{directory} can be written by others, who could replace the key: chmod 700 it")
        return [RingKey(_read(path), _activates_at(path), path.stat().st_mtime) for path in key_files(directory)]
    except OSError as error:
        raise KeyFileError(f"{error.filename or directory}: {error.strerror or error}") from error


def load_or_create(directory: Path, algorithm: Algorithm = "ES256") -> list[RingKey]:
    """The keys of a directory, making it and a first key if there is none.

    Raises:
        KeyFileError: they cannot be read, or not be made.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = load(directory)
        if not found:
            _create(directory / (SECRET_FILE if algorithm == "HS256" else KEY_FILE), SigningKey.generate(algorithm))
            found = load(directory)
    except OSError as error:
        raise KeyFileError(f"{error.filename or directory}: {error.strerror or error}") from error
    return found


def key_files(directory: Path) -> list[Path]:
    """The files that hold keys, by name."""
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def _activates_at(path: Path) -> float:
    match = _NAME.fullmatch(path.name)
    if match is None or match[1] is None:
        return 0.0
    try:
        return datetime.strptime(match[1], _TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise KeyFileError(f"{path} has no valid time in its name") from None


def _create(path: Path, key: SigningKey) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename, it never replaces a key that is there
        except FileExistsError:
            return  # another process was first; its key is the key
    finally:
        temporary.unlink()
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# A pure function, and an RSA key takes 40 ms to read, in which a worker does nothing else. Files are read every few
# seconds, so that one that was replaced or opened to others is seen.
_parse = lru_cache(maxsize=32)(SigningKey.from_bytes)


def _read(path: Path) -> SigningKey:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        # A Secret that Kubernetes mounts belongs to root, and the pod's group may read it: nobody in it can replace it.
        allowed = stat.S_IRGRP if status.st_uid == 0 and os.geteuid() != 0 else 0
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed:
            raise KeyFileError(f"{path} is open to others than its owner: chmod 600 it, and replace it if it was read")
        data = file.read()
    try:
        return _parse(data, "HS256" if path.suffix == ".secret" else "")
    except UnusableKey as error:
        raise KeyFileError(f"{path} {error}") from error
