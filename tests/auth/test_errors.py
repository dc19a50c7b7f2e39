import json
import re

import pytest

from auth.errors import (
    AuthError,
    BearerError,
    InsufficientScope,
    InvalidGrant,
    InvalidRequest,
    InvalidScope,
    InvalidToken,
    NoCredentials,
    OAuthError,
    TemporarilyUnavailable,
    UnsupportedGrantType,
    bearer_error_response,
    oauth_error_response,
)
from auth.scopes import Scope

# RFC 6749 §5.2: what error_description may be made of. It has neither quote nor backslash nor line break.
DESCRIPTION = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]+")

OAUTH = [
    (InvalidRequest("no"), 400, "invalid_request"),
    (InvalidGrant(reason="wrong_password"), 400, "invalid_grant"),
    (UnsupportedGrantType("no"), 400, "unsupported_grant_type"),
    (InvalidScope("no"), 400, "invalid_scope"),
    (TemporarilyUnavailable("no", reason="busy"), 503, "temporarily_unavailable"),
]


@pytest.mark.parametrize(("error", "status", "code"), OAUTH, ids=[code for _, _, code in OAUTH])
def test_the_token_endpoint_answers_in_the_shape_of_rfc_6749(error, status, code):
    response = oauth_error_response(error)
    assert response.status_code == status
    assert json.loads(bytes(response.body)) == {"error": code, "error_description": error.description}
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["pragma"] == "no-cache"
    assert ("retry-after" in response.headers) == (status == 503)
    assert "www-authenticate" not in response.headers


def test_every_way_to_fail_a_grant_reads_the_same():
    answers = {
        oauth_error_response(InvalidGrant(reason=reason)).body
        for reason in ("wrong_password", "unknown_user", "disabled")
    }
    assert len(answers) == 1


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
