"""What a token may be used for, and scope strings as RFC 6749 §3.3 writes them."""

import re
from collections.abc import Iterable
from enum import StrEnum

# scope = scope-token *( SP scope-token ); scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


class Scope(StrEnum):
    """The scopes this service checks. None implies another: an admin who is to call models also holds `llm`."""

    LLM = "llm"
    USAGE_READ = "usage:read"
    ADMIN = "admin"


DESCRIPTIONS: dict[Scope, str] = {
    Scope.LLM: "Call language models.",
    Scope.USAGE_READ: "Read one's own usage.",
    Scope.ADMIN: "Manage the service and read everyone's usage.",
}


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
    """The scopes, if a user can be given them.

    Raises:
        InvalidScopeString: there are none, or one is not a `Scope`.
    """
    wanted = frozenset(scopes)
    known = frozenset(str(scope) for scope in Scope)
    if not wanted:
        raise InvalidScopeString(f"a user needs at least one scope of: {format_scope(known)}")
    if wanted - known:
        raise InvalidScopeString(f"a scope is not one of: {format_scope(known)}")
    return wanted
