"""Random secrets that this service hands out and keeps only a hash of: refresh tokens, client secrets, API keys.

SHA-256 without salt or cost is enough for them: they have 256 random bits, which no list of guesses covers.
"""

import hashlib
import hmac
import os
import secrets
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_BYTES: Final = 32
_NONCE_BYTES: Final = 12


def new_secret(prefix: str = "") -> str:
    """A secret of 43 base64url characters behind a prefix that says what it is, to people and to secret scanners."""
    return prefix + secrets.token_urlsafe(_BYTES)


def hash_secret(secret: str) -> str:
    """What is stored of a secret: SHA-256 in hexadecimal, 64 characters. Any string can be hashed."""
    return hashlib.sha256(_bytes(secret)).hexdigest()


def matches(presented: str, stored_hash: str | None) -> bool:
    """Whether the secret is the one behind the hash. With None (there is no such credential) the same work, and no."""
    expected = hash_secret("") if stored_hash is None else stored_hash
    return hmac.compare_digest(hash_secret(presented), expected) and stored_hash is not None


def seal(secret: str, under: str) -> bytes:
    """Encrypt a secret under another one, for who has that one and nobody else: HKDF-SHA-256, AES-256-GCM."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + _cipher(under).encrypt(nonce, _bytes(secret), None)


def unseal(sealed: bytes, under: str) -> str:
    """The secret again.

    Raises:
        cryptography.exceptions.InvalidTag: it was sealed under another one, or was changed.
    """
    return _cipher(under).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None).decode()


def _cipher(under: str) -> AESGCM:
    # A key of its own for this use: the stored hash of the same secret says nothing about it.
    return AESGCM(HKDF(SHA256(), 32, salt=None, info=b"tollbook refresh token successor").derive(_bytes(under)))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
