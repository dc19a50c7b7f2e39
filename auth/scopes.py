"""What a token may be used for, and scope strings as RFC 6749 §3.3 writes them."""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final
from urllib.parse import quote

# scope = scope-token *( SP scope-token ); scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


class Scope(StrEnum):
    """The scopes this service checks. None implies another: an admin who is to call models also holds `llm`."""

    LLM = "llm"
    USAGE_READ = "usage:read"
    ACCOUNT = "account"
    TEAM_ADMIN = "team:admin"
    USERS_ADMIN = "users:admin"
    INTROSPECT = "introspect"
    ADMIN = "admin"


DESCRIPTIONS: dict[Scope, str] = {
    Scope.LLM: "Call any language model. `llm:<model>` allows one model only.",
    Scope.USAGE_READ: "Read one's own usage.",
    Scope.ACCOUNT: "Manage one's own API keys, sessions and password.",
    Scope.TEAM_ADMIN: "Manage the members of one's own team, and read their usage.",
    Scope.USERS_ADMIN: "Manage all users, teams, clients, API keys and sessions.",
    Scope.INTROSPECT: "Ask about tokens of other clients at `/introspect`.",
    Scope.ADMIN: "Manage the service and read everyone's usage.",
}
# What a user is given when nothing else is said.
DEFAULT_SCOPES: Final = (Scope.LLM, Scope.USAGE_READ, Scope.ACCOUNT)
_MODEL_PREFIX: Final = "llm:"


def model_scope(model: str) -> str:
    """The scope that allows one model. What a scope cannot hold (RFC 6749 §3.3) is percent-encoded."""
    return _MODEL_PREFIX + quote(model, safe="!#$&'()*+,-./:;<=>?@[]^_`{|}~")


def is_model_scope(scope: str) -> bool:
    """Whether the scope allows one model."""
    return len(scope) > len(_MODEL_PREFIX) and scope.startswith(_MODEL_PREFIX)


class InvalidScopeString(ValueError):  # noqa: N818  # says what is wrong with the string
    """Not a scope string by RFC 6749 §3.3, or a scope nobody can be granted."""


def parse_scope(text: str) -> frozenset[str]:
    """Read a scope string. The empty string is no scope at all: RFC 6749 §3.2 has it mean "not sent".

    Raises:
        InvalidScopeString: a character outside the grammar, or anything but one space between two tokens.
    """
    if text == "":
        return frozenset()
    tokens = text.split(" ")
    if not all(_TOKEN.fullmatch(token) for token in tokens):
        raise InvalidScopeString("scope is not a list of scope tokens with one space between them")
    return frozenset(tokens)


def format_scope(scopes: Iterable[str]) -> str:
    """Write a scope string, sorted, so that the same scopes always read the same."""
    return " ".join(sorted(set(scopes)))


def grantable(scopes: Iterable[str]) -> frozenset[str]:
    """The scopes, if a user, a client or an API key can be given them.

    Raises:
        InvalidScopeString: there are none, or one is neither a `Scope` nor that of a model.
    """
    wanted = frozenset(scopes)
    known = format_scope(Scope)
    if not wanted:
        raise InvalidScopeString(f"at least one scope is needed, of: {known} or llm:<model>")
    for scope in wanted - frozenset(str(scope) for scope in Scope):
        if not is_model_scope(scope) or not _TOKEN.fullmatch(scope):
            raise InvalidScopeString(f"a scope is not one of: {known} or llm:<model>")
    return wanted


def narrow(asked: Iterable[str], held: Iterable[str]) -> frozenset[str]:
    """What both have. Who holds `llm` holds every `llm:<model>`, and who asks for `llm` gets the models they hold."""
    asked, held = frozenset(asked), frozenset(held)
    both = asked & held
    if Scope.LLM in held:
        both |= {scope for scope in asked if is_model_scope(scope)}
    if Scope.LLM in asked:
        both |= {scope for scope in held if is_model_scope(scope)}
    return both
