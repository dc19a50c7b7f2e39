"""`helm test`: is the service ready, can the admin log in, does the token work, and is the login in the metrics?

One connection for all of it, so that the pod that is asked for its metrics is the one that took the login.
"""
# ruff: noqa: INP001, PLR2004, T201 - a script that the test pod is given, not a module

import json
import os
from http.client import HTTPConnection
from urllib.parse import urlencode, urlsplit

connection = HTTPConnection(urlsplit(os.environ["SMOKE_URL"]).netloc, timeout=10)


def ask(method: str, path: str, body: str = "", **headers: str) -> str:
    """The body of a 200; any other answer ends the test."""
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    if answer.status != 200:
        raise SystemExit(f"{method} {path}: {answer.status} {text}")
    return text


ask("GET", "/readyz")
username, password = os.environ["TOLLBOOK_ADMIN_USERNAME"], os.environ["TOLLBOOK_ADMIN_PASSWORD"]
form = urlencode({"grant_type": "password", "username": username, "password": password})
granted = json.loads(ask("POST", "/token", form, **{"Content-Type": "application/x-www-form-urlencoded"}))
me = json.loads(ask("GET", "/users/me", Authorization=f"Bearer {granted['access_token']}"))
if me["username"] != username:
    raise SystemExit(f"/users/me says {me['username']}, not {username}")
if os.environ["SMOKE_METRICS"] == "true" and "tollbook_auth_events_total{" not in ask("GET", "/metrics"):
    raise SystemExit("/metrics does not count the login")
print("ready, logged in, counted")
