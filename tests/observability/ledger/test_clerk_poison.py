"""A row that the database will not have: it goes to the log, and the rows before and after it go where they belong."""

from decimal import Decimal
from typing import Any

import pytest

from observability.ledger import clerk as module
from observability.ledger.clerk import Clerk
from tests.observability.kit import entry, json_lines, until
from tests.observability.ledger.kit import Gauges, ids

# Each is refused by at least one of the two databases, each in its own way.
POISON: dict[str, dict[str, Any]] = {
    "null": {"model": None},
    "text too long for its column": {"principal": "x" * 129},
    "a character no text can hold": {"model": "a\0b"},
    "half of a surrogate pair": {"model": "a\ud800"},
    # A price of 10 dollars per million tokens, and an upstream that says it used 2**63 - 1.
    "a cost no column can hold": {"cost_usd": Decimal("92233720368547.7580700000")},
    "a number no column can hold": {"input_tokens": 2**63},
}


@pytest.mark.parametrize("poison", POISON)
async def test_the_rows_around_it_are_written(engine, logged, monkeypatch, poison):
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.01)
    clerk = Clerk(engine, Gauges())
    clerk.start()
    clerk.enqueue(entry(1))
    clerk.enqueue(entry(2, **POISON[poison]))
    clerk.enqueue(entry(3))
    try:
        await until(lambda: clerk.pending == 0, "the queue to empty")
        clerk.enqueue(entry(4))  # it goes on after that
        await until(lambda: clerk.pending == 0, "the queue to empty again")
    finally:
        await clerk.stop(20)
    written = await ids(engine)
    assert [entry(number).call_id for number in (1, 3, 4)] == [each for each in written if each != entry(2).call_id]
    refused = [line for line in json_lines(logged()) if line["event"] == "ledger_entry_refused"]
    assert [line["call_id"] for line in refused] == ([] if entry(2).call_id in written else [entry(2).call_id])
