"""Where signing keys are kept: the protocol, and the implementation for several replicas, encrypted rows of a table.

The other implementation, files for one machine or from a vault, is in auth/keyfiles.py.
"""

import base64
import os
from datetime import UTC, datetime
from typing import Final, Protocol

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy.exc import IntegrityError

from auth.audit import SYSTEM, Actor
from auth.database import Database
from auth.keys import RingKey, SigningKey, UnusableKey
from auth.tables import signing_keys

_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_SETTING: Final = "TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY"
_STANDARD: Final = str.maketrans("-_", "+/")  # either alphabet of RFC 4648 will do


class KeyStoreError(Exception):
    """The keys cannot be used as they are; the message says where and what to do."""


class KeyStoreReadOnly(KeyStoreError):  # noqa: N818  # a state, not a fault
    """Keys can be read but not changed here."""


class UnknownKid(LookupError):  # noqa: N818  # reads as what it says
    """There is no signing key of this name."""


class KeyAdded(Exception):  # noqa: N818  # a state, not a fault
    """Another process has added a key in the meantime."""


class KeyStore(Protocol):
    """All keys there are. Every method may raise KeyStoreError, or DatabaseUnavailable where there is a database."""

    async def load(self) -> list[RingKey]:
        """Every key that is not revoked."""

    async def add(self, key: SigningKey, activates_at: float, *, known: int, by: Actor = SYSTEM) -> None:
        """Add a key, unless there are others now than the `known` number of keys that were loaded.

        Raises:
            KeyAdded: there are.
        """

    async def revoke(self, kid: str, *, by: Actor) -> None:
        """Never use a key again.

        Raises:
            UnknownKid: there is none of this name.
        """


class DatabaseKeyStore:
    """Keys in the database, each encrypted by AES-256-GCM under a key that is not there.

    Args:
        database: where they are.
        encryption_key: 32 bytes in base64.

    Raises:
        KeyStoreError: the encryption key is something else.
    """

    def __init__(self, database: Database, encryption_key: str) -> None:
        self._database = database
        try:
            key = base64.b64decode(encryption_key.strip().translate(_STANDARD), validate=True)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise KeyStoreError(f"{_SETTING}: 32 bytes in base64 are expected; make them by: openssl rand -base64 32")
        self._cipher = AESGCM(key)
        # To read an RSA key takes 40 ms, in which a worker does nothing else, and keys are looked at every few seconds.
        self._opened: dict[str, SigningKey] = {}

    async def load(self) -> list[RingKey]:
        """Every key that is not revoked.

        Raises:
            KeyStoreError: one was encrypted under another key.
        """
        wanted = signing_keys.select().where(signing_keys.c.revoked_at.is_(None))
        async with self._database.transaction() as connection:
            rows = (await connection.execute(wanted)).all()
        self._opened = {
            row.kid: self._opened.get(row.kid) or self._open(row.kid, row.algorithm, row.sealed) for row in rows
        }
        return [
            RingKey(self._opened[row.kid], row.activates_at.timestamp(), row.created_at.timestamp()) for row in rows
        ]

    async def add(self, key: SigningKey, activates_at: float, *, known: int, by: Actor = SYSTEM) -> None:
        """As in the protocol. Generations are unique, so of two replicas that add at once one is refused."""
        audit = by.did("signing_key.rotate", "signing_key", key.kid, algorithm=key.algorithm)
        try:
            async with self._database.transaction(audit) as connection:
                living = sa.func.count().filter(signing_keys.c.revoked_at.is_(None))
                count, last = (
                    await connection.execute(sa.select(living, sa.func.max(signing_keys.c.generation)))
                ).one()
                if count != known:
                    raise KeyAdded
                row = {
                    "kid": key.kid,
                    "generation": (last or 0) + 1,
                    "algorithm": key.algorithm,
                    "sealed": self._seal(key),
                    "created_at": datetime.now(UTC),
                    "activates_at": datetime.fromtimestamp(activates_at, UTC),
                }
                await connection.execute(signing_keys.insert().values(row))
        except IntegrityError as error:
            raise KeyAdded from error

    async def revoke(self, kid: str, *, by: Actor) -> None:
        """As in the protocol. The encrypted key is erased."""
        audit = by.did("signing_key.revoke", "signing_key", kid)
        change = (
            signing_keys.update()
            .where(signing_keys.c.kid == kid, signing_keys.c.revoked_at.is_(None))
            .values(revoked_at=datetime.now(UTC), sealed=b"")
        )
        async with self._database.transaction(audit) as connection:
            if (await connection.execute(change)).rowcount != 1:
                raise UnknownKid

    def _seal(self, key: SigningKey) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, key.to_bytes(), key.kid.encode())

    def _open(self, kid: str, algorithm: str, sealed: bytes) -> SigningKey:
        try:
            data = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], kid.encode())
        except (InvalidTag, ValueError) as error:
            raise KeyStoreError(
                f"{_SETTING}: it is not the one that the signing key {kid} in the database was encrypted with"
            ) from error
        try:
            return SigningKey.from_bytes(data, algorithm)
        except UnusableKey as error:
            raise KeyStoreError(f"the signing key {kid} of the database {error}") from error
