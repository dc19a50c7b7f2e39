"""The key that signs access tokens: ES256, one PEM file, made at the first start and kept.

Several workers may start at once on an empty directory. Each makes a key, exactly one file gets the name (a hard link
is created or fails, nothing between), and all of them read that file.
"""

import base64
import hashlib
import json
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

ALGORITHM = "ES256"  # RFC 7518 §3.4: ECDSA on P-256 with SHA-256
KEY_FILE = "signing-key.pem"


class KeyFileError(Exception):
    """The key file cannot be used as it is; the message names it and says what to do."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A P-256 key pair. `kid` is the RFC 7638 thumbprint, so the same key has the same name everywhere."""

    private: ec.EllipticCurvePrivateKey = field(repr=False)
    public: ec.EllipticCurvePublicKey
    kid: str

    @classmethod
    def of(cls, private: ec.EllipticCurvePrivateKey) -> Self:
        """The key pair of a private key."""
        public = private.public_key()
        return cls(private, public, thumbprint(public))

    @classmethod
    def generate(cls) -> Self:
        """A new key."""
        return cls.of(ec.generate_private_key(ec.SECP256R1()))

    def to_pem(self) -> bytes:
        """The private key, PKCS #8, unencrypted."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_or_create(directory: Path) -> SigningKey:
    """Read the signing key of a directory, making both if they are not there.

    Raises:
        KeyFileError: the directory or the file cannot be read or written, is open to others, or holds no P-256 key.
    """
    path = directory / KEY_FILE
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = directory.stat().st_mode
        # In a sticky directory others may add files but not replace ours.
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
            raise KeyFileError(f"{directory} can be written by others, who could replace the key: chmod 700 it")
        if not path.exists():
            _create(path)
        return SigningKey.of(_read(path))
    except OSError as error:
        raise KeyFileError(f"{error.filename or path}: {error.strerror or error}") from error


def _create(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(SigningKey.generate().to_pem())
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


def _read(path: Path) -> ec.EllipticCurvePrivateKey:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        # A Secret that Kubernetes mounts belongs to root, and the pod's group may read it: nobody in it can replace it.
        allowed = stat.S_IRGRP if status.st_uid == 0 and os.geteuid() != 0 else 0
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed:
            raise KeyFileError(f"{path} is open to others than its owner: chmod 600 it, and replace it if it was read")
        pem = file.read()
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise KeyFileError(f"{path} is encrypted; an unencrypted PEM file is expected") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} holds no private key in PEM format") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeyFileError(f"{path} holds a key of another kind; ES256 needs an EC key on the curve P-256")
    return key


def thumbprint(public: ec.EllipticCurvePublicKey) -> str:
    """The RFC 7638 thumbprint of a P-256 key: base64url of the SHA-256 of its JWK, 43 characters."""
    point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)  # 0x04, x, y
    x, y = point[1:33], point[33:65]
    # The required members in lexicographic order, without white space: RFC 7638 §3.
    members = json.dumps({"crv": "P-256", "kty": "EC", "x": _base64url(x), "y": _base64url(y)}, separators=(",", ":"))
    return _base64url(hashlib.sha256(members.encode()).digest())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
