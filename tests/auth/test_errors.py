import json
import re

import pytest

from auth import errors
from auth.errors import (
    AuthError,
    BearerError,
    InsufficientScope,
    InvalidClient,
    InvalidGrant,
    InvalidRequest,
    InvalidScope,
    InvalidToken,
    NoCredentials,
    OAuthError,
    SlowDown,
    TemporarilyUnavailable,
    UnauthorizedClient,
    UnsupportedGrantType,
    UnsupportedTokenType,
    bearer_error_response,
    oauth_error_response,
)
from auth.scopes import Scope

# RFC 6749 §5.2: what error_description may be made of. It has neither quote nor backslash nor line break.
DESCRIPTION = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]+")

OAUTH = [
    (InvalidRequest("no"), 400, "invalid_request"),
    (InvalidClient(reason="wrong_secret"), 401, "invalid_client"),
    (InvalidGrant(reason="wrong_password"), 400, "invalid_grant"),
    (UnauthorizedClient("no"), 400, "unauthorized_client"),
    (UnsupportedGrantType("no"), 400, "unsupported_grant_type"),
    (UnsupportedTokenType("no"), 400, "unsupported_token_type"),
    (InvalidScope("no"), 400, "invalid_scope"),
    (SlowDown(retry_after_seconds=1), 429, "slow_down"),
    (TemporarilyUnavailable("no", reason="busy"), 503, "temporarily_unavailable"),
]


@pytest.mark.parametrize(("error", "status", "code"), OAUTH, ids=[code for _, _, code in OAUTH])
def test_the_token_endpoint_answers_in_the_shape_of_rfc_6749(error, status, code):
    response = oauth_error_response(error)
    assert response.status_code == status
    assert json.loads(bytes(response.body)) == {"error": code, "error_description": error.description}
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["pragma"] == "no-cache"
    assert response.headers.get("retry-after") == ("1" if status in {429, 503} else None)
    assert response.headers.get("www-authenticate") == ('Basic realm="tollbook"' if status == 401 else None)
    assert DESCRIPTION.fullmatch(error.description)


def test_every_way_to_fail_a_grant_reads_the_same():
    answers = {
        oauth_error_response(InvalidGrant(reason=reason)).body
        for reason in ("wrong_password", "unknown_user", "disabled")
    }
    assert len(answers) == 1


def test_every_way_to_fail_as_a_client_reads_the_same():
    answers = {
        oauth_error_response(InvalidClient(reason=reason)).body
        for reason in ("wrong_secret", "unknown_client", "no_secret", "disabled")
    }
    assert len(answers) == 1


def test_who_is_to_wait_is_told_how_long():
    assert oauth_error_response(SlowDown(retry_after_seconds=90)).headers["retry-after"] == "90"


@pytest.mark.parametrize(
    ("error", "status", "challenge"),
    [
        (NoCredentials(), 401, 'Bearer realm="tollbook"'),
        (
            InvalidToken(reason="bad_signature"),
            401,
            'Bearer realm="tollbook", error="invalid_token", error_description="The access token is not valid."',
        ),
        (
            InvalidToken(reason="expired"),
            401,
            'Bearer realm="tollbook", error="invalid_token", error_description="The access token has expired."',
        ),
        (
            InsufficientScope(Scope.USAGE_READ),
            403,
            (
                'Bearer realm="tollbook", error="insufficient_scope", '
                'error_description="The access token does not have the scope usage:read.", scope="usage:read"'
            ),
        ),
    ],
    ids=["none", "invalid", "expired", "scope"],
)
def test_a_refused_bearer_is_challenged_as_rfc_6750_says(error, status, challenge):
    response = bearer_error_response(error)
    assert response.status_code == status
    assert response.headers["www-authenticate"] == challenge == error.headers["WWW-Authenticate"]
    assert json.loads(bytes(response.body))["error_description"] == error.description
    assert DESCRIPTION.fullmatch(error.description)


def test_the_body_names_an_error_even_when_the_challenge_must_not():
    assert json.loads(bytes(bearer_error_response(NoCredentials()).body))["error"] == "unauthorized"


def test_the_tree_in_the_docstring_is_the_tree():
    assert issubclass(OAuthError, AuthError)
    assert {error.__name__ for error in OAuthError.__subclasses__()} == {type(error).__name__ for error, _, _ in OAUTH}
    assert {error.__name__ for error in BearerError.__subclasses__()} == {
        "NoCredentials",
        "InvalidToken",
        "InsufficientScope",
    }
    for error in (*OAuthError.__subclasses__(), *BearerError.__subclasses__()):
        assert re.search(rf"── {error.__name__} +{error.status}\b", errors.__doc__), error
