"""What the lifespan makes and hands to every request as `request.state`."""

from dataclasses import dataclass
from typing import TypedDict

from auth.service import AuthService
from observability.genai import Books
from observability.ledger.query import LedgerReader
from service.health import Health
from service.llm.catalog import Catalog
from service.llm.relay import Relay


@dataclass(frozen=True, slots=True)
class Llm:
    """What a route needs to answer a call."""

    catalog: Catalog
    relay: Relay
    books: Books


class State(TypedDict):
    """The typed state of one worker."""

    auth: AuthService
    llm: Llm
    ledger: LedgerReader
    health: Health
