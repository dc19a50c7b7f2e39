"""`tollbook signing-keys`: what access tokens are signed with."""

import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from auth.keys import KeyRing, RingKey
from auth.keystore import UnknownKid
from auth.rotation import SOON_SECONDS
from service.authorization import make_keys
from service.commands.directory import AsJson, Directory, in_directory, show

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Show the keys that are accepted, the oldest first."""

    async def work(directory: Directory) -> KeyRing:
        keys = make_keys(directory.settings, directory.database)
        await keys.load()
        return keys.ring

    ring, now = in_directory(work), time.time()
    rows = [
        {
            "kid": each.key.kid,
            "algorithm": each.key.algorithm,
            "signs_from": datetime.fromtimestamp(each.activates_at, UTC) if each.activates_at else "the beginning",
            "state": _state(each, ring, now),
        }
        for each in ring.accepted(now)
    ]
    show(rows, as_json=as_json)


@app.command()
def rotate(
    now: Annotated[bool, typer.Option("--now", help=f"It signs in {SOON_SECONDS} seconds already.")] = False,
) -> None:
    """Make a new key. It is published before it signs; the old one is accepted until its last token has expired."""

    async def work(directory: Directory) -> str:
        keys = make_keys(directory.settings, directory.database)
        key = await keys.rotate(by=directory.by, delay_seconds=SOON_SECONDS if now else None)
        return key.kid

    typer.echo(f"Made {in_directory(work)}.")


# A name may begin with a hyphen, and is no option then.
@app.command(context_settings={"ignore_unknown_options": True})
def revoke(kid: Annotated[str, typer.Argument(help="The key.")]) -> None:
    """Refuse a key, and every token it has signed, on every worker within seconds."""

    async def work(directory: Directory) -> None:
        try:
            await make_keys(directory.settings, directory.database).revoke(kid, by=directory.by)
        except UnknownKid:
            raise LookupError("There is no such signing key.") from None

    in_directory(work)
    typer.echo(f"Revoked {kid}.")


def _state(each: RingKey, ring: KeyRing, now: float) -> str:
    if each.activates_at > now:
        return "published"
    return "signs" if each.key is ring.signer(now) else "accepted"
