"""`tollbook keys`: API keys, for tools that know no other credential."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer

from auth.apikeys import ApiKey
from auth.names import validate_name
from auth.scopes import InvalidScopeString, Scope, format_scope, grantable, is_model_scope, model_scope, narrow
from service.commands.directory import AsJson, Directory, all_pages, encodable, in_directory, show, show_secret

app = typer.Typer(no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(help="Id of the key.", callback=encodable)]
_MAX_DAYS: Final = 3660


@app.command()
def add(
    username: Annotated[str, typer.Argument(help="Whose key it is.")],
    name: Annotated[str, typer.Argument(help="What it is for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="May be given more than once. Default: calling models and reading usage, as far as the user may."
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model it may call, in place of all. May be given more than once.")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, max=_MAX_DAYS, help="Until it expires. Default: never.")] = None,
) -> None:
    """Make a key, and show it once."""

    async def work(directory: Directory) -> tuple[ApiKey, str]:
        user = await directory.user(username)
        scopes = _wanted(scope or [], model or [], user.scopes)
        expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
        return await directory.api_keys.create(user.id, name, scopes=scopes, expires_at=expires_at, by=directory.by)

    key, secret = in_directory(work)
    typer.echo(f"Added {key.id} with {format_scope(key.scopes)}.")
    show_secret("The key", secret)


@app.command("list")
def list_keys(
    user: Annotated[str | None, typer.Option(help="Only of this user.")] = None, as_json: AsJson = False
) -> None:
    """Show all keys, revoked ones too."""

    async def work(directory: Directory) -> list[ApiKey]:
        user_id = await directory.user_id(user)
        return await all_pages(directory.api_keys.list, "after", lambda each: each.id, user_id=user_id)

    rows = [
        {
            "id": key.id,
            "username": key.username,
            "name": key.name,
            "scopes": key.scopes,
            "state": state_of(key),
            "created_at": key.created_at,
            "expires_at": key.expires_at,
            "last_used_at": key.last_used_at,
        }
        for key in in_directory(work)
    ]
    show(rows, as_json=as_json)


@app.command()
def rotate(
    key_id: KeyId,
    overlap: Annotated[int, typer.Option(min=0, help="How long the old one still works, in seconds.")] = 0,
) -> None:
    """Make a key that takes another's place, and show it once."""
    key, secret = in_directory(
        lambda directory: directory.api_keys.rotate(key_id, overlap_seconds=overlap, by=directory.by)
    )
    typer.echo(f"Added {key.id}, in place of {key_id}.")
    show_secret("The key", secret)


@app.command()
def revoke(key_id: KeyId) -> None:
    """Never accept a key again."""
    in_directory(lambda directory: directory.api_keys.revoke(key_id, by=directory.by))
    typer.echo(f"Revoked {key_id}.")


def state_of(key: ApiKey) -> str:
    """What became of a key."""
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        return "expired"
    return "user disabled" if key.user_disabled else "active"


def _wanted(scopes: list[str], models: list[str], held: frozenset[str]) -> frozenset[str]:
    """The scopes of a key to be made, as the admin API has them: unless they are named, none for managing.

    Raises:
        InvalidScopeString: the user does not have all of them, or one is none.
        InvalidName: a model cannot be called that.
    """
    if not scopes and not models:
        return frozenset(each for each in held if each in {Scope.LLM, Scope.USAGE_READ} or is_model_scope(each))
    named = frozenset(scopes) - {Scope.LLM} if models else frozenset(scopes)
    wanted = grantable(named | {model_scope(validate_name(model)) for model in models})
    if not wanted <= narrow(wanted, held):
        raise InvalidScopeString("the user does not have all of these scopes")
    return wanted
