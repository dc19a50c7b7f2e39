"""Names that people give to users, teams, clients and keys."""

import unicodedata
from typing import Final

MAX_NAME_CHARACTERS: Final = 128
_MAX_CHARACTERS_BEFORE: Final = 4 * MAX_NAME_CHARACTERS  # composed they may be fewer
# They reorder or break a line of text in which a name stands, and so could make it read as something else.
_LINE_AND_BIDI_CONTROLS = frozenset(
    "\u2028\u2029\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


class InvalidName(ValueError):  # noqa: N818  # reads as what it says
    """Not a name that there can be; the message says why and does not contain it."""


def validate_name(text: str) -> str:
    """The name in NFC, in which it is stored and looked up.

    Raises:
        InvalidName: empty, over 128 characters, with white space around it, or with a control character.
    """
    # Before anything else: to normalise takes time that grows with the square of the length.
    name = unicodedata.normalize("NFC", text) if len(text) <= _MAX_CHARACTERS_BEFORE else ""
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        raise InvalidName(f"a name has 1 to {MAX_NAME_CHARACTERS} characters")
    if any(unicodedata.category(c) in {"Cc", "Cs"} or c in _LINE_AND_BIDI_CONTROLS for c in name):
        raise InvalidName("a name has no control characters")
    if name != name.strip():
        raise InvalidName("a name has no white space around it")
    return name
