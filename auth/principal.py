"""Who is calling."""

from dataclasses import dataclass

from auth.scopes import Scope, is_model_scope, model_scope

# How a caller proved who they are.
ACCESS_TOKEN = "access_token"  # noqa: S105  # a word, not a secret
CLIENT_TOKEN = "client_credentials"  # noqa: S105  # a word, not a secret
API_KEY = "api_key"
OUTSIDE = "oidc"


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of one request, as the credential says it. Nothing here is looked up in the database."""

    subject: str  # id of the user or client; stable when the name changes
    username: str  # what the books call them; see `CLIENT_PREFIX`
    scopes: frozenset[str]
    auth_method: str  # how the caller proved it
    expires_at: float  # Unix time, seconds; the credential is not accepted after it. Infinite for some API keys
    issued_at: float = 0.0  # Unix time, seconds: when the credential was issued, or read from the database
    credential_id: str = ""  # `jti` of a token, id of an API key
    client_id: str = ""
    session_id: str = ""  # of the login that the token comes from
    team: str = ""  # id of the team; of an outside provider its name

    def has(self, scope: str) -> bool:
        """Whether the credential carries this very scope; no scope stands for another."""
        return scope in self.scopes

    @property
    def calls_models(self) -> bool:
        """Whether there is a model they may call."""
        return Scope.LLM in self.scopes or any(is_model_scope(scope) for scope in self.scopes)

    def may_call(self, model: str) -> bool:
        """Whether they may call this model."""
        return Scope.LLM in self.scopes or model_scope(model) in self.scopes


# Users, clients and principals of an outside provider share the books' one column of names, and must not be mistaken
# for one another: no user can have a name that begins like this.
CLIENT_PREFIX = "client:"
OUTSIDE_PREFIX = "oidc:"
RESERVED_PREFIXES = (CLIENT_PREFIX, OUTSIDE_PREFIX)
