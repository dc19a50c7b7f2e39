"""Signing keys and the ring: who signs, who is accepted, what is published."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jose.backends import ECKey
from joserfc.jwk import KeySet

from auth.keys import KeyRing, NoSigningKey, RingKey, SigningKey, UnusableKey, thumbprint

TTL, LEEWAY = 600, 5
ALGORITHMS = ["ES256", "RS256", "HS256"]
EC_PRIVATE = ec.generate_private_key(ec.SECP256R1())
RSA_PRIVATE = rsa.generate_private_key(65537, 2048)
A, B, C = SigningKey.of(EC_PRIVATE), SigningKey.generate(), SigningKey.generate()
RSA = SigningKey.of(RSA_PRIVATE)
SECRET = SigningKey.generate("HS256")


def ring(*keys, algorithm="ES256"):
    return KeyRing(
        [RingKey(key, activates_at) for key, activates_at in keys],
        algorithm=algorithm,
        ttl_seconds=TTL,
        leeway_seconds=LEEWAY,
    )


def jwk_of(key):
    jwk = key.jwk()
    assert jwk is not None
    return jwk


def pem_of(key, encryption=None):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def public_pem():
    return EC_PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


# one key


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_is_the_same_after_it_was_stored(algorithm):
    key = SigningKey.generate(algorithm)
    again = SigningKey.from_bytes(key.to_bytes(), algorithm)
    assert (again.algorithm, again.kid) == (algorithm, key.kid)
    assert again.verifier.verify(b"data", key.signer.sign(b"data"))
    assert again == key


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_keys_have_two_names(algorithm):
    first, second = (SigningKey.generate(algorithm) for _ in range(2))
    assert first.kid != second.kid
    assert len(first.kid) == 43


def test_es256_is_the_default_and_rsa_has_2048_bits():
    assert SigningKey.generate().algorithm == "ES256"
    assert len(jwk_of(SigningKey.generate("RS256"))["n"]) == 2048 // 6 + 1


def test_the_kid_is_the_rfc_7638_thumbprint():
    # The key and the thumbprint of RFC 9449 §6.1.
    jwk = {
        "kty": "EC",
        "crv": "P-256",
        "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
        "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
    }
    assert thumbprint(ECKey(jwk, "ES256").prepared_key) == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


@pytest.mark.parametrize("key", [A, RSA], ids=lambda key: key.algorithm)
def test_another_implementation_reads_the_jwk_and_finds_the_same_thumbprint(key):
    (found,) = KeySet.import_key_set({"keys": [jwk_of(key)]}).keys
    assert found.thumbprint() == key.kid
    assert not found.is_private


def test_the_private_key_is_in_no_repr_and_no_jwk():
    assert str(EC_PRIVATE.private_numbers().private_value) not in repr(A)
    assert "secret" not in repr(RingKey(SECRET, 0))
    assert jwk_of(A).keys() == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert jwk_of(RSA).keys() == {"kty", "n", "e", "kid", "use", "alg"}
    assert (jwk_of(RSA)["use"], jwk_of(RSA)["alg"]) == ("sig", "RS256")
    assert SECRET.jwk() is None


def test_coordinates_keep_their_leading_zeros():
    """RFC 7518 §6.2.1.2: the octets of a coordinate are as many as the curve has, else the thumbprint differs."""
    lengths = {len(jwk_of(SigningKey.generate())[name]) for _ in range(600) for name in ("x", "y")}
    assert lengths == {43}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (lambda: b"", "no private key in PEM"),
        (lambda: b"\xff\0 not a key", "no private key in PEM"),
        (lambda: pem_of(ec.generate_private_key(ec.SECP256R1()))[:-60], "no private key in PEM"),
        (public_pem, "no private key in PEM"),
        (lambda: pem_of(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"x")), "encrypted"),
        (lambda: pem_of(ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (lambda: pem_of(ec.generate_private_key(ec.SECP256K1())), "P-256"),
        (lambda: pem_of(ed25519.Ed25519PrivateKey.generate()), "P-256"),
        (lambda: pem_of(rsa.generate_private_key(65537, 1024)), "2048 bits"),
    ],
    ids=["empty", "garbage", "cut", "public", "encrypted", "p-384", "secp256k1", "ed25519", "rsa-1024"],
)
def test_a_pem_text_without_a_key_that_can_sign_is_refused(content, complaint):
    with pytest.raises(UnusableKey, match=complaint):
        SigningKey.from_pem(content())


def test_a_secret_that_is_short_or_that_everybody_may_know_is_refused():
    assert SigningKey.of(b"s" * 32).algorithm == "HS256"
    with pytest.raises(UnusableKey, match="under 32 bytes"):
        SigningKey.of(b"s" * 31)
    with pytest.raises(UnusableKey, match="PEM"):
        SigningKey.of(public_pem())


def test_the_pem_is_pkcs8():
    assert isinstance(load_pem_private_key(A.to_bytes(), None), ec.EllipticCurvePrivateKey)
    assert A.to_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")


# the ring


def test_an_empty_ring_signs_nothing_and_accepts_nothing():
    empty = ring()
    with pytest.raises(NoSigningKey):
        empty.signer(0)
    assert empty.verifier(A.kid, 0) is None
    assert empty.jwks(0) == {"keys": []}


def test_a_new_key_is_published_and_accepted_before_it_signs():
    both = ring((A, 0), (B, 1000))
    assert both.signer(999).kid == A.kid
    assert both.signer(1000).kid == B.kid
    assert both.verifier(B.kid, 0) is B
    assert [each["kid"] for each in both.jwks(0)["keys"]] == [A.kid, B.kid]


def test_an_old_key_is_accepted_until_its_last_token_has_died_and_no_longer():
    both = ring((A, 0), (B, 1000))
    end = 1000 + TTL + LEEWAY
    assert both.verifier(A.kid, end - 0.001) is A
    assert [each.key.kid for each in both.accepted(end - 0.001)] == [A.kid, B.kid]
    assert both.verifier(A.kid, end) is None
    assert [each["kid"] for each in both.jwks(end)["keys"]] == [B.kid]
    assert both.verifier(B.kid, end * 100) is B


def test_only_keys_that_are_still_to_come_sign_nothing():
    with pytest.raises(NoSigningKey):
        ring((A, 1000)).signer(999)


def test_without_its_successor_a_key_goes_on():
    assert ring((A, 0)).signer(10_000) is A
    assert ring((A, 0)).verifier(A.kid, 10_000) is A


def test_the_same_key_twice_is_one_key_that_signs_from_the_earlier_time_on():
    twice = ring((A, 1000), (A, 0))
    assert twice.signer(0) is A
    assert twice.verifier(A.kid, 1000 + TTL + LEEWAY) is A
    assert len(twice.jwks(0)["keys"]) == 1


def test_a_secret_is_of_use_only_where_it_is_configured_and_never_published():
    keys = (A, 0), (SECRET, 1000)
    assert ring(*keys).signer(2000) is A
    assert ring(*keys).verifier(SECRET.kid, 2000) is None
    assert ring(*keys).verifier(A.kid, 10_000) is A  # and it makes no other key old
    configured = ring(*keys, algorithm="HS256")
    assert configured.signer(2000) is SECRET
    assert configured.verifier(SECRET.kid, 2000) is SECRET
    for each in (ring(*keys), configured):
        assert [jwk["kid"] for jwk in each.jwks(1000)["keys"]] == [A.kid]


def test_keys_of_another_algorithm_go_on_after_the_setting_was_changed():
    both = ring((RSA, 0), (A, 1000))
    assert both.signer(999) is RSA
    assert both.verifier(RSA.kid, 1000) is RSA
    assert [each["alg"] for each in both.jwks(1000)["keys"]] == ["RS256", "ES256"]


@settings(max_examples=300, deadline=None)
@given(
    times=st.lists(st.integers(0, 3000), min_size=1, max_size=3),
    issued_at=st.integers(0, 4000),
    age=st.integers(0, TTL + LEEWAY - 1),
)
def test_whatever_is_signed_is_accepted_as_long_as_it_lives(times, issued_at, age):
    any_ring = ring(*zip((A, B, C), times, strict=False))
    try:
        signer = any_ring.signer(issued_at)
    except NoSigningKey:
        assert issued_at < min(times)
    else:
        assert any_ring.verifier(signer.kid, issued_at + age) is signer
        assert signer.kid in {each["kid"] for each in any_ring.jwks(issued_at + age)["keys"]}
