"""Who is calling."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of one request, as the credential says it. Nothing here is looked up in the database."""

    subject: str  # the user's id; stable when the username changes
    username: str
    scopes: frozenset[str]
    auth_method: str  # how the caller proved it: "access_token"
    expires_at: float  # Unix time, seconds; the credential is not accepted after it

    def has(self, scope: str) -> bool:
        """Whether the credential carries this very scope; no scope stands for another."""
        return scope in self.scopes
