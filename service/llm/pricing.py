"""What a call cost: exact decimal arithmetic over the token counts that the upstream reported, and nothing else."""

from decimal import Context, Decimal, Inexact, localcontext
from typing import Annotated, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

# Prices have at most 4 decimals and are per million (6 more), so every cost is exact with 10.
_COST_STEP = Decimal("1E-10")
_MILLION_EXPONENT = -6
# Nothing is rounded silently: counts are below 2**63 (19 digits) and prices have at most 10 digits, so 50 are plenty.
_EXACT = Context(prec=50, traps=[Inexact])
_MAX_TOKENS = 2**63 - 1


def _refuse_float(value: object) -> object:
    if isinstance(value, (bool, float)):
        raise ValueError("must be a decimal, given as text or Decimal: a float would not be what was written")  # noqa: TRY004 - pydantic reports ValueError, not TypeError
    return value


UsdPerMillion = Annotated[Decimal, BeforeValidator(_refuse_float), Field(ge=0, max_digits=10, decimal_places=4)]


class Price(BaseModel):
    """What an upstream charges, in US dollars per million tokens, at most 4 decimals.

    `version` goes into the ledger beside the cost, so that the cost of a row can be worked out again.
    Without `cached_input`, cached input costs as much as any other input.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:+-]{1,64}$")]
    input: UsdPerMillion
    output: UsdPerMillion
    cached_input: UsdPerMillion | None = None


class TokenCounts(Protocol):
    """Counts with OpenAI's meaning: cached input is part of input, reasoning is part of output. None is unknown."""

    @property
    def input_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int | None: ...
    @property
    def cached_input_tokens(self) -> int | None: ...
    @property
    def reasoning_tokens(self) -> int | None: ...


def cost(price: Price | None, usage: TokenCounts) -> Decimal | None:
    """The cost in US dollars, exact, always with 10 decimals; None when it cannot be known.

    It is unknown without a price, without the input or output count, and when the counts contradict each other
    (negative, or a part larger than its whole). It is never estimated. An upstream that reports no cached tokens
    charges none at the cached price. Reasoning tokens are already in the output count, so they add nothing.
    """
    if price is None or usage.input_tokens is None or usage.output_tokens is None:
        return None
    cached = usage.cached_input_tokens or 0
    reasoning = usage.reasoning_tokens or 0
    if not (0 <= cached <= usage.input_tokens <= _MAX_TOKENS and 0 <= reasoning <= usage.output_tokens <= _MAX_TOKENS):
        return None
    cached_price = price.input if price.cached_input is None else price.cached_input
    with localcontext(_EXACT):
        for_input = (usage.input_tokens - cached) * price.input + cached * cached_price
        total = for_input + usage.output_tokens * price.output
        return total.scaleb(_MILLION_EXPONENT).quantize(_COST_STEP)
