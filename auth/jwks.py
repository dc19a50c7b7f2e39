"""The public keys of an outside provider: its JWK set (RFC 7517 §5), from an address or a file, kept and read anew.

What cannot be read leaves the last known set standing. A token with a key that is not known makes us look again, but
not more often than every ten seconds, and once for all who wait: made-up key names must not be load for the provider.

An address is https, and is asked without following redirects, so that nobody on the way and no other host can answer
for the provider. Plain http is for this machine only.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog
from jose import jwk
from jose.backends.base import Key
from jose.exceptions import JOSEError
from jose.utils import base64_to_long
from yarl import URL

log = structlog.get_logger("auth.jwks")

_REFRESH_SECONDS: Final = 300.0
_REFRESH_FILE_SECONDS: Final = 5.0
_LOOK_AGAIN_SECONDS: Final = 10.0
_TIMEOUT_SECONDS: Final = 5.0
_MAX_BYTES: Final = 256 * 1024
_MAX_KEYS: Final = 100
_RSA_BITS: Final = 2048  # the least of RFC 7518 §3.3
_THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1"})
# Not compressed: what is small on the way could be large here.
_HEADERS: Final = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
# The key type, and the curve, that RFC 7518 §3.1 binds to each algorithm. python-jose verifies no EdDSA.
_KINDS: Final = {
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
}
# Of a private key that somebody published, python-jose shall see the public half only.
_PUBLIC_MEMBERS: Final = frozenset({"kty", "n", "e", "crv", "x", "y"})


class KeysUnavailable(Exception):  # noqa: N818  # a state, not a fault
    """No key set could be read yet."""


class InvalidKeySet(ValueError):  # noqa: N818  # reads as what it says
    """Not a JWK set; the message says why."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key for one algorithm."""

    kid: str | None
    algorithm: str
    key: Key


def read_key_set(data: bytes, algorithms: Iterable[str]) -> list[PublicKey]:
    """The keys of a JWK set that can verify one of the algorithms. Others are passed over: RFC 7517 §5.

    Raises:
        InvalidKeySet: it is none.
    """
    if len(data) > _MAX_BYTES:
        raise InvalidKeySet(f"over {_MAX_BYTES} bytes")
    try:
        found = json.loads(data)["keys"]
    except (ValueError, RecursionError, LookupError, TypeError):
        raise InvalidKeySet("not a JWK set") from None
    if not isinstance(found, list) or len(found) > _MAX_KEYS:
        raise InvalidKeySet(f"not a list of at most {_MAX_KEYS} keys")
    wanted = tuple(algorithms)
    return [key for each in found if isinstance(each, dict) for key in _keys_of(each, wanted)]


def _keys_of(members: dict[str, Any], algorithms: Iterable[str]) -> Iterator[PublicKey]:
    kid = members.get("kid")
    if members.get("use", "sig") != "sig" or not isinstance(kid, str | None):
        return
    public = {name: value for name, value in members.items() if name in _PUBLIC_MEMBERS}
    for algorithm in algorithms:
        kind, curve = _KINDS[algorithm]
        # A secret ("oct") is no algorithm's kind here: what is shared with everybody proves nothing.
        if members.get("alg", algorithm) != algorithm or members.get("kty") != kind:
            continue
        try:
            fits = members["crv"] == curve if curve else base64_to_long(members["n"]).bit_length() >= _RSA_BITS
            if not fits:
                continue
            key = jwk.construct(public, algorithm)
        except (JOSEError, ValueError, TypeError, LookupError, OverflowError):
            continue
        yield PublicKey(kid, algorithm, key)


class JwkSet:
    """The keys of a provider.

    Args:
        url: where its set is; https, or http on this machine.
        file: the same in a file. One of the two.
        algorithms: that are accepted: RS or ES, with 256, 384 or 512.
        clock: seconds, monotonic.

    Raises:
        ValueError: an address that anyone on the way could answer for, or an algorithm that there is not.
    """

    def __init__(
        self,
        *,
        url: str | None,
        file: Path | None,
        algorithms: Iterable[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._algorithms = tuple(algorithms)
        if not self._algorithms or not set(self._algorithms) <= _KINDS.keys():
            raise ValueError(f"algorithms of an outside provider are of: {', '.join(_KINDS)}")
        if (url is None) == (file is None):
            raise ValueError("a JWK set is at an address or in a file: set one of the two")
        self._url = None if url is None else _safe(url)
        self._file = file
        self._clock = clock
        self.interval_seconds = _REFRESH_SECONDS if file is None else _REFRESH_FILE_SECONDS
        self._data: bytes | None = None
        # Another list whenever the set is another: who keeps what these keys have verified can tell by it.
        self.known: list[PublicKey] | None = None
        self._looked_at = float("-inf")
        self._look: asyncio.Task[None] | None = None
        self._failing = False

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """The keys that a token with this header may be signed with; without a `kid` only if there is just one.

        Raises:
            KeysUnavailable: none could be read yet.
        """
        found = self._matching(kid, algorithm)
        if not found and (self._looking() or self._clock() - self._looked_at >= _LOOK_AGAIN_SECONDS):
            await self.refresh()
            found = self._matching(kid, algorithm)
        if self.known is None:
            raise KeysUnavailable
        return found

    async def refresh(self) -> None:
        """Read the set anew, once for all who ask meanwhile. If that fails the last known stands: of failures in a row
        the first is logged, and so is their end.
        """
        if not self._looking():
            self._looked_at = self._clock()
            self._look = asyncio.create_task(self._try_to_read(), name="jwk_set")
        assert self._look is not None  # noqa: S101  # it is looking now
        # Who goes away while it reads does not take the answer from the others.
        await asyncio.shield(self._look)

    async def close(self) -> None:
        """Give up reading, if it does."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])

    def _looking(self) -> bool:
        return self._look is not None and not self._look.done()

    def _matching(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        keys = [each for each in self.known or () if each.algorithm == algorithm]
        if kid is None:
            return keys if len(keys) == 1 else []
        return [each for each in keys if each.kid == kid]

    async def _try_to_read(self) -> None:
        try:
            data = await self._fetch(self._url) if self._url is not None else await asyncio.to_thread(self._read)
            if data == self._data:
                keys = self.known
            else:
                keys = read_key_set(data, self._algorithms)
                # None that can be used is no failure, but hardly what the operator wants.
                (log.info if keys else log.warning)("key_set_read", usable_keys=len(keys))
        except (InvalidKeySet, aiohttp.ClientError, OSError, TimeoutError) as error:
            if not self._failing:
                log.warning(
                    "key_set_unreadable", error=f"{type(error).__name__}: {error}", known=self.known is not None
                )
            self._failing = True
        else:
            if self._failing:
                log.info("key_set_readable_again")
            self._data, self.known, self._failing = data, keys, False

    async def _fetch(self, url: URL) -> bytes:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        data = bytearray()
        # A session of its own each time: it is needed once in minutes, and so holds no connection that has gone stale.
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            session.get(url, allow_redirects=False, headers=_HEADERS) as response,
        ):
            if response.status != 200:  # noqa: PLR2004
                raise InvalidKeySet(f"the provider answered {response.status}")
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > _MAX_BYTES:
                    break
        return bytes(data)

    def _read(self) -> bytes:
        assert self._file is not None  # noqa: S101  # there is no address
        with self._file.open("rb") as file:
            return file.read(_MAX_BYTES + 1)


def _safe(text: str) -> URL:
    """The address as aiohttp itself reads it, so that what is checked is what is asked."""
    try:
        url = URL(text)
    except ValueError:
        raise ValueError("the address of the JWK set is none") from None
    if url.user is not None or url.password is not None:
        raise ValueError("the address of the JWK set has a user name or password in it")
    if not url.host or not (url.scheme == "https" or (url.scheme == "http" and url.host in _THIS_MACHINE)):
        raise ValueError("the address of the JWK set does not begin with https:// and is not on this machine")
    return url
