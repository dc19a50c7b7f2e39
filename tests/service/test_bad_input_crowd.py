"""A thousand connections at once."""

import asyncio
from collections import Counter

import aiohttp
import pytest

from tests.support.calls import CHAT, body
from tests.support.scripts import CROWD
from tests.support.tools import raise_file_limit, unavailable
from tests.support.waiting import eventually

FILES_NEEDED = 3 * CROWD
"""Both ends of two thousand connections are here or in the service; this many in one process is room enough."""


@pytest.mark.slow
async def test_a_thousand_calls_at_once_are_all_served_and_counted(service, books, upstream, marker):
    """The upstream answers nobody before all of them wait, so they really are open at the same time."""
    if raise_file_limit() < FILES_NEEDED:
        unavailable(f"a process may not open {FILES_NEEDED} files here")
    headers = {"Authorization": f"Bearer {service.token()}"}
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=90)
    with books.counting("crowd") as counted:
        async with aiohttp.ClientSession(
            service.base_url, headers=headers, connector=connector, timeout=timeout
        ) as http:

            async def call(number: int) -> str:
                sent = body("crowd", f"{marker}-{number}", stream=number % 2 == 0)
                async with http.post(CHAT, json=sent, headers={"X-Request-ID": f"{marker}-{number}"}) as answer:
                    text = await answer.text()
                    return f"{answer.status} {'[DONE]' in text or 'chat.completion' in text}"

            answers = Counter(await asyncio.gather(*(call(number) for number in range(CROWD))))
    assert answers == {"200 True": CROWD}
    assert counted == {"ok": CROWD}
    assert len(upstream.requests(marker)) == CROWD
    eventually(lambda: books.count(f"{marker}-%") == CROWD, "a ledger row for each")
    assert sum(str(line["request_id"]).startswith(marker) for line in service.log_lines(event="request")) == CROWD
