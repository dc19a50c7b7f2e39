"""The catalog of the service under test: a model for each behaviour of the scripted upstream, and one that is down."""

import json
from decimal import Decimal
from typing import Any

from tests.support.service import free_port
from tests.support.shapes import Usage
from tests.support.upstream import ScriptedUpstream

KEY_VARIABLE = "SCRIPTED_API_KEY"
UPSTREAM_KEY = "sk-scripted-0123456789abcdef"
DOWN = "down"
ALIAS = "known-by-another-name"
"""Its upstream knows it as `echo`."""
PRICE = {"version": "2026-01", "input": "2.50", "output": "10.00", "cached_input": "1.25"}
SHORT_READ_SECONDS = 1
SHORT = ("hang", "hang-mid-stream")
"""Models whose upstream is given up after SHORT_READ_SECONDS of silence."""


def scripted_catalog(upstream: ScriptedUpstream) -> str:
    """The text of the catalog file: JSON, which is YAML."""
    entries = [_entry(model, upstream.base_url) for model in upstream.models]
    alias = _entry(ALIAS, upstream.base_url)
    alias["upstream"]["model"] = "echo"
    entries += [alias, _entry(DOWN, f"http://127.0.0.1:{free_port()}/v1", "down")]
    return json.dumps({"models": entries}, indent=1)


def _entry(model: str, base_url: str, name: str = "scripted") -> dict[str, Any]:
    return {
        "name": model,
        "upstream": {
            "name": name,
            "base_url": base_url,
            "api_key_env": KEY_VARIABLE,
            "timeouts": {"connect": 5, "read": SHORT_READ_SECONDS if model in SHORT else 30, "total": 120},
            "max_retries": 1 if model == "flaky" else 0,
        },
        "price": PRICE,
    }


def cost_of(usage: Usage) -> Decimal:
    """What a call with this usage costs, in US dollars."""
    rate = {name: Decimal(value) for name, value in PRICE.items() if name != "version"}
    fresh = usage.prompt - usage.cached
    total = fresh * rate["input"] + usage.cached * rate["cached_input"] + usage.completion * rate["output"]
    return total / 1_000_000
