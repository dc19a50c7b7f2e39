"""/admin/signing-keys: what access tokens are signed with."""

import time
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from auth.authority import Level
from auth.keys import RingKey
from auth.rotation import SOON_SECONDS, Keys
from service.api.admin.caller import Admin, may
from service.api.admin.common import READ_ERRORS, WRITE_ERRORS, AdminRoute, Id, Strict, read_body
from service.openapi import json_body

router = APIRouter(prefix="/admin/signing-keys", tags=["admin"], route_class=AdminRoute)


class SigningKeyObject(BaseModel):
    """A key that is accepted."""

    kid: str
    algorithm: str
    signs_from: datetime
    state: Literal["published", "signs", "accepted"]


class SigningKeyList(BaseModel):
    """All of them, the oldest first."""

    data: list[SigningKeyObject]


class KeyRotation(Strict):
    """When the new key is to sign."""

    now: bool = Field(False, strict=True, description=f"In {SOON_SECONDS} seconds, not when it was published for long.")


_ROTATION = {"on schedule": {"value": {}}, "now": {"value": {"now": True}}}


def _shape(each: RingKey, keys: Keys, now: float) -> SigningKeyObject:
    if each.activates_at > now:
        state: Literal["published", "signs", "accepted"] = "published"
    else:
        state = "signs" if each.key is keys.ring.signer(now) else "accepted"
    return SigningKeyObject(
        kid=each.key.kid,
        algorithm=each.key.algorithm,
        signs_from=datetime.fromtimestamp(each.activates_at, UTC),
        state=state,
    )


@router.get("", responses=READ_ERRORS)
async def list_signing_keys(admin: Annotated[Admin, may(Level.SERVICE)]) -> SigningKeyList:
    """The keys that are accepted."""
    keys, now = admin.auth.keys, time.time()
    return SigningKeyList(data=[_shape(each, keys, now) for each in keys.ring.accepted(now)])


@router.post("", status_code=201, openapi_extra=json_body(KeyRotation, _ROTATION), responses=WRITE_ERRORS)
async def rotate_signing_key(
    request: Request, admin: Annotated[Admin, may(Level.SERVICE, "signing_key.rotate")]
) -> SigningKeyList:
    """Make a new key. The old one is accepted until its last token has expired."""
    wanted = await read_body(request, KeyRotation)
    await admin.auth.keys.rotate(by=admin.by, delay_seconds=SOON_SECONDS if wanted.now else None)
    return await list_signing_keys(admin)


@router.delete("/{kid}", status_code=204, responses=WRITE_ERRORS)
async def revoke_signing_key(admin: Annotated[Admin, may(Level.SERVICE, "signing_key.revoke")], kid: Id) -> None:
    """Refuse a key, and every token it has signed: elsewhere within seconds, here at once."""
    await admin.auth.keys.revoke(kid, by=admin.by)
    admin.auth.forget_accepted()
