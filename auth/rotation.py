"""The signing keys of one worker: read every few seconds, replaced when they are old."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import structlog

from auth.audit import SYSTEM, Actor
from auth.keys import Algorithm, KeyRing, RingKey, SigningKey
from auth.keystore import KeyAdded, KeyStore, KeyStoreError, KeyStoreReadOnly, UnknownKid

log = structlog.get_logger("auth.rotation")

SOON_SECONDS: Final = 10  # until a key signs that must sign now: every other worker has read it by then
_DAY: Final = 86400
_ATTEMPTS: Final = 5
_READ_ONLY_SECONDS: Final = 3600  # to the next attempt at a store that cannot be written


class Keys:
    """The ring, and the ways to change it.

    Args:
        store: where the keys are.
        algorithm: of new keys.
        ttl_seconds: life of a token.
        leeway_seconds: how long past it a token is accepted.
        publish_seconds: how long a new key is published before it signs.
        rotation_days: age at which a key is replaced; 0: never by itself.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        algorithm: Algorithm = "ES256",
        ttl_seconds: int,
        leeway_seconds: int,
        publish_seconds: int = 600,
        rotation_days: float = 30,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._algorithm = algorithm
        self._ttl_seconds = ttl_seconds
        self._leeway_seconds = leeway_seconds
        self._publish_seconds = publish_seconds
        self._rotation_seconds = rotation_days * _DAY
        self._clock = clock
        # One at a time: what was read before a key was revoked must not come after it.
        self._lock = asyncio.Lock()
        self._count = 0  # of the keys in the store, those of no use now among them
        self._read_only_until: float | None = None
        self.ring = self._ring([])  # another object whenever the keys are others

    async def load(self) -> None:
        """Read the keys as they are.

        Raises:
            KeyStoreError, DatabaseUnavailable: the ring stays as it was.
        """
        async with self._lock:
            await self._load()

    async def refresh(self) -> None:
        """Read the keys, and make one if there is none that can sign.

        Raises:
            KeyStoreError, DatabaseUnavailable: the ring stays as it was.
        """
        async with self._lock:
            await self._refresh()

    async def rotate_if_due(self) -> None:
        """Make a new key if the newest is old, or is for another algorithm than the configured one. Where keys cannot
        be stored they stay as they are, and the log says so once.
        """
        async with self._lock:
            now = self._clock()
            if not self._due(now) or now < (self._read_only_until or 0.0):
                return
            try:
                await self._add(now + self._publish_seconds, SYSTEM)
            except KeyAdded:
                await self._load()
            except KeyStoreReadOnly as error:
                if self._read_only_until is None:
                    log.warning("rotation_skipped", reason=str(error))
                self._read_only_until = now + _READ_ONLY_SECONDS

    async def remove_retired(self) -> None:
        """Remove the keys whose last token has expired. Else they would come to life again if newer were revoked."""
        async with self._lock:
            # On every clock: they may differ by less than the time that a key is published before it signs.
            kept = {each.key.kid for each in self.ring.accepted(self._clock() - self._publish_seconds)}
            retired = [each.key.kid for each in self.ring.keys if each.key.kid not in kept]
            for kid in retired:
                # Another worker may be faster, and keys that cannot be written are not ours to remove.
                with suppress(UnknownKid, KeyStoreReadOnly):
                    await self._store.revoke(kid, by=SYSTEM)
            if retired:
                await self._load()

    async def keep_up(self) -> None:
        """What has to be done every few seconds: `refresh`, `rotate_if_due`, `remove_retired`."""
        await self.refresh()
        await self.rotate_if_due()
        await self.remove_retired()

    async def rotate(self, *, by: Actor, delay_seconds: float | None = None) -> SigningKey:
        """Make a new key.

        Args:
            by: who asks for it.
            delay_seconds: until it signs. None: as long as a new key is published.

        Raises:
            KeyStoreError, DatabaseUnavailable: it cannot be stored.
        """
        delay = self._publish_seconds if delay_seconds is None else delay_seconds
        async with self._lock:
            for _ in range(_ATTEMPTS):
                await self._refresh()
                # Whoever was faster may have made one that signs later than is asked for here.
                with suppress(KeyAdded):
                    return await self._add(self._clock() + delay, by)
        raise KeyStoreError("others add signing keys all the time; try again")

    async def revoke(self, kid: str, *, by: Actor) -> None:
        """Refuse a key and all tokens it has signed. If none is left that signs, there is a new one.

        Raises:
            UnknownKid: there is none of this name.
            KeyStoreError, DatabaseUnavailable: it cannot be removed.
        """
        async with self._lock:
            await self._store.revoke(kid, by=by)
            # At once, whether or not the others can be read now.
            self.ring = self._ring(each for each in self.ring.keys if each.key.kid != kid)
            try:
                await self._refresh()
            except KeyStoreError as error:  # of the others: this one is revoked, which is what was asked for
                log.warning("signing_keys_unreadable", error=str(error))

    async def _load(self) -> None:
        found = await self._store.load()
        self._count = len(found)
        ring = self._ring(found)
        if ring.keys != self.ring.keys:
            self.ring = ring

    async def _refresh(self) -> None:
        await self._load()
        now = self._clock()
        if any(each.activates_at <= now for each in self.ring.keys):
            return
        try:
            # Nobody has seen a token yet, or all keys were revoked: there is nothing to wait for.
            await self._add(now if self._count else 0.0, SYSTEM)
        except KeyAdded:
            log.info("signing_key_made_elsewhere")
            await self._load()

    async def _add(self, activates_at: float, by: Actor) -> SigningKey:
        # In a thread: to make an RSA key takes long enough to be seen in a stream.
        key = await asyncio.to_thread(SigningKey.generate, self._algorithm)
        await self._store.add(key, activates_at, known=self._count, by=by)
        await self._load()
        return key

    def _due(self, now: float) -> bool:
        if not self.ring.keys:
            return False
        newest = self.ring.keys[-1]
        if newest.key.algorithm != self._algorithm:
            # Not before it signs: while the setting is being changed, old and new replicas would outdo each other.
            return newest.activates_at <= now
        began = newest.activates_at or newest.created_at
        return bool(self._rotation_seconds) and now >= began + self._rotation_seconds - self._publish_seconds

    def _ring(self, keys: Iterable[RingKey]) -> KeyRing:
        return KeyRing(
            keys, algorithm=self._algorithm, ttl_seconds=self._ttl_seconds, leeway_seconds=self._leeway_seconds
        )
