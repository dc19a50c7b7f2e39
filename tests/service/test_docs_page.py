"""/docs and /redoc in a real browser: they load from this server alone, and the Authorize button logs in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.service import ADMIN, PASSWORD, RunningService

# React keeps its own copy of a field's value: setting it needs the setter of the element's class.
_TYPE = """((selector, text) => {
  const field = document.querySelector(selector);
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(field, text);
  field.dispatchEvent(new Event('input', {bubbles: true}));
  field.dispatchEvent(new Event('change', {bubbles: true}));
})"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as running:
        yield running


def _click(browser: Browser, selector: str) -> None:
    browser.wait_for(f"document.querySelector({selector!r}) !== null")
    browser.run(f"document.querySelector({selector!r}).click()")


def test_authorize_logs_in_and_a_route_is_tried_with_the_token(service: RunningService, browser: Browser) -> None:
    browser.open(f"{service.base_url}/docs")
    _click(browser, "button.authorize")
    browser.wait_for("document.querySelector('#oauth_username') !== null")
    browser.run(f"{_TYPE}('#oauth_username', {ADMIN!r})")
    browser.run(f"{_TYPE}('#oauth_password', {PASSWORD!r})")
    browser.run("document.querySelectorAll('.scopes input[type=checkbox]').forEach(box => box.checked || box.click())")
    _click(browser, ".auth-btn-wrapper button.authorize")
    browser.wait_for("document.querySelector('.modal-ux-content').innerText.includes('Logout')")
    _click(browser, ".modal-ux-header button.close-modal")

    _click(browser, "#operations-auth-me_users_me_get button.opblock-summary-control")
    _click(browser, "#operations-auth-me_users_me_get button.try-out__btn")
    _click(browser, "#operations-auth-me_users_me_get button.execute")
    browser.wait_for("document.querySelector('.live-responses-table tbody .response-col_status') !== null")

    assert browser.run("document.querySelector('.live-responses-table tbody .response-col_status').innerText") == "200"
    assert ADMIN in browser.run("document.querySelector('.live-responses-table').innerText")


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_show_the_api_and_load_from_this_server_alone(
    service: RunningService, browser: Browser, page: str
) -> None:
    browser.open(f"{service.base_url}{page}")
    browser.wait_for("document.body !== null && document.body.innerText.includes('/v1/chat/completions')")

    strangers = [url for url in browser.requests if not url.startswith((service.base_url, "data:", "blob:", "about:"))]
    assert browser.requests
    assert strangers == []
