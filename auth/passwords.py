"""Argon2id password hashes by passlib, made off the event loop in a small bounded pool of threads.

A hash costs tens of milliseconds and tens of MiB, so the pool is the limit on both: `threads` at work, `max_waiting` in
the queue, and past that an immediate refusal rather than a queue without end.
"""

import asyncio
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import structlog
from passlib.context import CryptContext
from zxcvbn import zxcvbn  # 35 ms and 15 MiB: better at the start of a worker than under a request

MAX_PASSWORD_BYTES = 1024
# zxcvbn tries every reading of characters that can stand for letters: for 72 of the worst it takes seconds, with the
# interpreter's lock, and for 32 some tenths of one. What is hard to guess is so by then.
_SCORED_CHARACTERS = 32
# It keeps the user's name in a dictionary of its module while it scores, so two at once would get in each other's way.
_scoring = threading.Lock()

T = TypeVar("T")
log = structlog.get_logger("auth.passwords")


class PasswordsBusy(Exception):  # noqa: N818  # a state, not a fault
    """Every thread is hashing and the queue is full; try again in a moment."""


class InvalidPassword(ValueError):  # noqa: N818  # reads as what it says
    """The password may not be set; the message says why and does not contain it."""


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    """What a new password has to be (NIST SP 800-63B §5.1.1: length and a list of bad ones, no composition rules).

    `min_length` is in characters. `min_score` is zxcvbn's, of 0 to 4; its lists hold the common passwords of known
    breaches. 0 does not ask.
    """

    min_length: int = 12
    min_score: int = 2

    def check(self, password: str, username: str) -> None:
        """Refuse a password that must not be set. It may take tenths of a second: not for the event loop.

        Raises:
            InvalidPassword: too short, over 1024 bytes, with a NUL, not encodable, or easy to guess.
        """
        secret = _encode(password)
        if secret is None:
            raise InvalidPassword(f"a password has at most {MAX_PASSWORD_BYTES} bytes in UTF-8 and no NUL character")
        characters = secret.decode()
        if len(characters) < self.min_length:
            raise InvalidPassword(f"a password has at least {self.min_length} characters")
        if not self.min_score:
            return
        with _scoring:
            found = zxcvbn(characters[:_SCORED_CHARACTERS], user_inputs=[username, "tollbook"])
        if found["score"] < self.min_score:
            feedback = found["feedback"]  # sentences of its own, without a word of the password
            hints = [hint for hint in (feedback["warning"], *feedback["suggestions"]) if hint]
            raise InvalidPassword(" ".join(["the password is too easy to guess.", *hints]))


def _encode(password: str) -> bytes | None:
    """The bytes to hash; None for a password nobody can have."""
    if len(password) > MAX_PASSWORD_BYTES:  # first, because to normalise takes time that grows with its square
        return None
    # NFC, as RFC 8265 §4.2.2 asks: one keyboard sends "é" as one code point, the next as two.
    try:
        secret = unicodedata.normalize("NFC", password).encode()
    except UnicodeEncodeError:  # a lone surrogate
        return None
    return None if b"\0" in secret or len(secret) > MAX_PASSWORD_BYTES else secret


class Passwords:
    """Hashes and verifies. Safe to share by all requests of a process; one a process, made after fork.

    Args:
        time_cost: Argon2 passes.
        memory_cost_kib: memory of one hash, KiB.
        parallelism: Argon2 lanes.
        threads: hashes at work at once; they hold `threads * memory_cost_kib` KiB at most.
        max_waiting: hashes that may wait for a thread.
        policy: what a new password has to be.
    """

    def __init__(
        self,
        *,
        time_cost: int,
        memory_cost_kib: int,
        parallelism: int,
        threads: int,
        max_waiting: int,
        policy: PasswordPolicy = PasswordPolicy(),
    ) -> None:
        self._policy = policy
        self._context = CryptContext(
            schemes=["argon2"],
            argon2__type="ID",
            argon2__time_cost=time_cost,
            argon2__memory_cost=memory_cost_kib,
            argon2__parallelism=parallelism,
        )
        # Made now, not at the first unknown user, whom the time it takes would give away.
        self._dummy: str = self._context.hash("nobody has this password")
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self.capacity = threads + max_waiting
        """So many can be at work or wait."""
        self._places = threading.BoundedSemaphore(self.capacity)

    async def hash_new(self, password: str, username: str) -> str:
        """The Argon2id hash of a password that a user is to get.

        Raises:
            PasswordsBusy: the queue is full.
            InvalidPassword: the policy refuses it.
        """

        def check_and_hash() -> str:
            self._policy.check(password, username)
            return self._hash(_encode(password) or b"")

        return await self._run(check_and_hash)

    async def hash(self, password: str) -> str:
        """The Argon2id hash to store. It does not ask whether the password is a good one: see `hash_new`.

        Raises:
            PasswordsBusy: the queue is full.
            InvalidPassword: over-long, with a NUL, or not encodable.
        """
        secret = _encode(password)
        if secret is None:
            raise InvalidPassword("the password cannot be hashed")
        return await self._run(lambda: self._hash(secret))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Whether the password is the one behind the stored hash.

        With None (no such user) it does the same work against a dummy hash and says no, so that the time an answer
        takes does not tell who exists. A password nobody can have is refused without any work, whoever it is for.

        Raises:
            PasswordsBusy: the queue is full.
        """
        secret = _encode(password)
        if secret is None:
            return False
        return await self._run(lambda: self._verify(secret, stored))

    def needs_update(self, stored: str) -> bool:
        """Whether the stored hash was made with other parameters than today's."""
        return bool(self._context.needs_update(stored))

    def close(self) -> None:
        """Drop what waits, let what hashes finish (tens of milliseconds), end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _hash(self, secret: bytes) -> str:
        return str(self._context.hash(secret))

    def _verify(self, secret: bytes, stored: str | None) -> bool:
        try:
            matches = bool(self._context.verify(secret, self._dummy if stored is None else stored))
        except ValueError:  # not a hash passlib can read
            # Without the exception, which quotes the hash.
            log.error("stored_hash_unreadable")  # noqa: TRY400
            return self._verify(secret, None)
        return matches and stored is not None

    async def _run(self, work: Callable[[], T]) -> T:
        if not self._places.acquire(blocking=False):
            raise PasswordsBusy
        try:
            future = self._pool.submit(work)
        except RuntimeError:  # closed: the process is going down
            self._places.release()
            raise PasswordsBusy from None
        # Tied to the work, not to the caller: a client that goes away does not free a thread that still hashes.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)
