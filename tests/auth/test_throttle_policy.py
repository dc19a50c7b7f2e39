from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.throttle_policy import Count, Keys, ThrottlePolicy, is_known, is_suspect, wait_seconds

NOW = 1_800_000_000.0
DAY = 86400.0
POLICY = ThrottlePolicy()
KEYS = Keys.of("ada", "192.0.2.1")


def wait(policy=POLICY, now=NOW, **counts):
    return wait_seconds(policy, KEYS, {getattr(KEYS, name): count for name, count in counts.items()}, now)


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(0, 0), (4, 0), (5, 1), (6, 2), (7, 4), (8, 8), (14, 512), (15, 900), (16, 900), (10**6, 900)],
)
def test_past_the_free_failures_the_delay_is_a_second_and_doubles_up_to_the_longest(failures, seconds):
    assert wait(pair=Count(failures, NOW)) == seconds


@pytest.mark.parametrize(
    ("key", "failures", "seconds"),
    [
        ("address", 49, 0),
        ("address", 50, 1),
        ("address", 53, 8),
        ("account", 99, 0),
        ("account", 100, 1),
        ("account", 103, 8),
    ],
)
def test_an_address_and_an_account_have_more_failures_free_and_then_the_same_delays(key, failures, seconds):
    assert wait(**{key: Count(failures, NOW)}) == seconds


def test_the_strictest_count_holds():
    assert wait(pair=Count(6, NOW), address=Count(53, NOW), account=Count(101, NOW)) == 8


@pytest.mark.parametrize(("later", "seconds"), [(0.0, 4), (0.5, 4), (1.0, 3), (3.999, 1), (4.0, 0), (60.0, 0)])
def test_a_delay_is_told_in_whole_seconds_that_are_enough(later, seconds):
    assert wait(now=NOW + later, pair=Count(7, NOW)) == seconds


@pytest.mark.parametrize("key", ["address", "account"])
def test_what_others_do_never_holds_up_an_address_the_user_has_logged_in_from(key):
    others = {key: Count(10_000, NOW)}
    assert wait(**others) == 900
    assert wait(**others, pair=Count(last_success_at=NOW - 29 * DAY)) == 0
    assert wait(**others, pair=Count(last_success_at=NOW - 30 * DAY)) == 900


def test_their_own_failures_hold_up_a_known_address_as_any_other():
    assert wait(pair=Count(6, NOW, last_success_at=NOW)) == 2


@pytest.mark.parametrize(("key", "limit"), [("address", 50), ("account", 100)])
def test_an_address_and_an_account_are_suspect_from_their_first_delay_until_the_failures_are_forgotten(key, limit):
    def suspect(failures, now=NOW):
        return is_suspect(POLICY, KEYS, {getattr(KEYS, key): Count(failures, NOW)}, now)

    assert not suspect(limit - 1)
    assert suspect(limit)
    assert suspect(limit, NOW + 1799)
    assert not suspect(limit, NOW + 1800)


def test_the_failures_of_an_account_at_one_address_do_not_make_all_of_it_suspect():
    assert not is_suspect(POLICY, KEYS, {KEYS.pair: Count(1000, NOW)}, NOW)


def test_an_attempt_without_an_address_is_under_no_address_rule():
    keys = Keys.of("ada", "")
    assert keys.address is None
    assert len(keys.all()) == 2
    assert wait_seconds(POLICY, keys, {keys.pair: Count(6, NOW)}, NOW) == 2


@pytest.mark.parametrize(("longest", "after"), [(1, 900), (450, 900), (900, 1800), (86400, 172_800)])
def test_a_count_is_forgotten_long_after_its_delay_is_over(longest, after):
    policy = replace(POLICY, max_delay_seconds=longest)
    assert policy.forgotten_after_seconds == after > longest
    assert wait(policy, now=NOW + longest - 1, pair=Count(100, NOW)) == 1


def test_the_clock_of_another_machine_does_not_make_a_delay_longer():
    assert wait(pair=Count(7, NOW + 3600)) == 4


@given(
    failures=st.integers(0, 10**9),
    ago=st.floats(-1e6, 1e7, allow_nan=False),
    policy=st.builds(
        ThrottlePolicy,
        free_failures=st.integers(1, 100),
        max_delay_seconds=st.integers(1, 86400),
    ),
)
def test_no_wait_is_longer_than_the_longest_and_more_failures_never_make_it_shorter(failures, ago, policy):
    seconds = wait(policy, pair=Count(failures, NOW - ago))
    assert 0 <= seconds <= policy.max_delay_seconds
    assert seconds <= wait(policy, pair=Count(failures + 1, NOW - ago))
    assert failures >= policy.free_failures or seconds == 0


def test_who_never_logged_in_is_not_known():
    assert not is_known(Count(3, NOW), NOW)
    assert is_known(Count(3, NOW, NOW - 1), NOW)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ada", "2001:db8:1:2::1"), ("ada", "2001:db8:1:2:ffff:ffff:ffff:ffff")),
        (("ada", "192.0.2.1"), ("ada", "::ffff:192.0.2.1")),
        (("ada", "fe80::1%eth0"), ("ada", "fe80::2%eth1")),
        (("caf\u00e9", "192.0.2.1"), ("cafe\u0301", "192.0.2.1")),
    ],
    ids=["IPv6 /64", "IPv4 in IPv6", "zone", "unicode form"],
)
def test_two_ways_to_write_the_same_are_counted_together(one, other):
    assert Keys.of(*one) == Keys.of(*other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ada", "192.0.2.1"), ("ada", "192.0.2.2")),
        (("ada", "2001:db8:1:2::1"), ("ada", "2001:db8:1:3::1")),
        (("ada", "192.0.2.1"), ("Ada", "192.0.2.1")),
        (("ada\0192.0.2.1", ""), ("ada", "192.0.2.1")),
    ],
)
def test_what_differs_is_counted_apart(one, other):
    assert Keys.of(*one).pair != Keys.of(*other).pair


def test_a_count_is_under_its_own_key_and_names_nobody():
    for username, address in [("ada", "192.0.2.1"), ("192.0.2.1", "ada"), ("\ud800", "unix:"), ("a" * 2000, "::1")]:
        keys = Keys.of(username, address).all()
        assert len(set(keys)) == 3
        assert all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in keys)
