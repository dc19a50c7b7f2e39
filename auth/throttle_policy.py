"""How long a login has to wait, by the failures before it. Pure: no clock, no store.

Three counts, of which the strictest holds: of an account and an address, of an address, and of an account from
addresses it has not logged in from. docs/adr/0016-login-throttle.md says why it is so.
"""

import hashlib
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

KNOWN_FOR_SECONDS: Final = 30 * 86400.0
_FORGOTTEN_AFTER_SECONDS: Final = 900.0


@dataclass(frozen=True, slots=True)
class ThrottlePolicy:
    """How many failures are free, and how long a delay can be. Past the free ones it is 1 s, and doubles with each."""

    free_failures: int = 5
    address_failures: int = 50
    account_failures: int = 100
    max_delay_seconds: int = 900

    @property
    def forgotten_after_seconds(self) -> float:
        """A count begins anew when nothing has failed for so long: always later than its delay has ended."""
        return max(_FORGOTTEN_AFTER_SECONDS, 2.0 * self.max_delay_seconds)


@dataclass(frozen=True, slots=True)
class Count:
    """What was counted under one key. Times are Unix time in seconds; 0: never."""

    failures: int = 0
    last_failure_at: float = 0.0
    last_success_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Keys:
    """What an attempt is counted under: SHA-256 hashes, because people type passwords as names."""

    pair: str
    address: str | None  # None: it has none
    account: str

    @classmethod
    def of(cls, username: str, address: str) -> "Keys":
        """The keys of an attempt. The name is any string; there need not be such a user."""
        # As the users are looked up, so that a name written in another way is not another name.
        name, where = unicodedata.normalize("NFC", username), _network(address)
        return cls(_key("pair", name, where), _key("address", where) if where else None, _key("account", name))

    def all(self) -> list[str]:
        """Every key there is."""
        return [key for key in (self.pair, self.address, self.account) if key is not None]


def is_known(pair: Count, now: float) -> bool:
    """Whether the account has logged in from there."""
    return pair.last_success_at > now - KNOWN_FOR_SECONDS


def wait_seconds(policy: ThrottlePolicy, keys: Keys, counts: Mapping[str, Count], now: float) -> int:
    """How long the next attempt has to wait, in whole seconds; 0: not at all."""
    pair = counts.get(keys.pair, Count())
    waits = [_wait(pair, policy.free_failures, policy, now)]
    # Who has logged in from there is held up by no failures but their own.
    if not is_known(pair, now):
        waits.append(_wait(counts.get(keys.account, Count()), policy.account_failures, policy, now))
        if keys.address is not None:
            waits.append(_wait(counts.get(keys.address, Count()), policy.address_failures, policy, now))
    return math.ceil(max(waits))


def is_suspect(policy: ThrottlePolicy, keys: Keys, counts: Mapping[str, Count], now: float) -> bool:
    """Whether so much has failed from there, or for the account, that attempts are looked at one by one."""
    limits = ((keys.address, policy.address_failures), (keys.account, policy.account_failures))
    found = ((counts.get(key or "", Count()), limit) for key, limit in limits)
    return any(
        count.failures >= limit and now - count.last_failure_at < policy.forgotten_after_seconds
        for count, limit in found
    )


def _wait(count: Count, free: int, policy: ThrottlePolicy, now: float) -> float:
    excess = count.failures - free
    # Another machine's clock may be ahead of ours.
    ago = max(0.0, now - count.last_failure_at)
    if excess < 0 or ago >= policy.forgotten_after_seconds:
        return 0.0
    delay = min(2.0 ** min(excess, 32), policy.max_delay_seconds)
    return max(0.0, delay - ago)


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _network(address: str) -> str:
    """The address, of IPv6 the /64: who has one address there has them all."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> 64 << 64))
    return str(parsed)
