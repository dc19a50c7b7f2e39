import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from jose.backends import ECKey

from auth.keys import KEY_FILE, KeyFileError, SigningKey, load_or_create, thumbprint


def test_a_first_start_makes_a_key_only_its_owner_can_read_and_keeps_it(tmp_path):
    directory = tmp_path / "state" / "keys"
    key = load_or_create(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in directory.iterdir()] == [KEY_FILE]
    assert load_or_create(directory).kid == key.kid


def test_the_kid_is_the_rfc_7638_thumbprint():
    # The key and the thumbprint of RFC 9449 §6.1.
    jwk = {
        "kty": "EC",
        "crv": "P-256",
        "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
        "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
    }
    assert thumbprint(ECKey(jwk, "ES256").prepared_key) == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


def test_the_private_key_is_not_in_the_repr():
    key = SigningKey.generate()
    number = key.private.private_numbers().private_value
    assert "private" not in repr(key)
    assert str(number) not in repr(key)


def test_eight_threads_end_with_one_key(tmp_path):
    barrier, kids = threading.Barrier(8), []

    def start():
        barrier.wait()
        kids.append(load_or_create(tmp_path / "keys").kid)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kids) == 8
    assert len(set(kids)) == 1
    assert [path.name for path in (tmp_path / "keys").iterdir()] == [KEY_FILE]


def test_eight_processes_end_with_one_key(tmp_path):
    program = (
        "import sys; from pathlib import Path; from auth.keys import load_or_create; print('ready', flush=True);"
        "sys.stdin.readline(); print(load_or_create(Path(sys.argv[1])).kid)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "keys"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    kids = [process.communicate(timeout=30)[0] for process in processes]
    assert len(set(kids)) == 1
    assert len(kids[0].strip()) == 43


@pytest.fixture
def key_file(tmp_path):
    load_or_create(tmp_path)
    return tmp_path / KEY_FILE


def pem_of(key, encryption=None):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def public_pem():
    return (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


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
        (lambda: pem_of(rsa.generate_private_key(65537, 2048)), "P-256"),
    ],
    ids=["empty", "garbage", "cut", "public", "encrypted", "p-384", "secp256k1", "rsa"],
)
def test_a_file_that_is_no_p256_key_is_refused_by_name_and_left_alone(key_file, content, complaint):
    pem = content()
    key_file.write_bytes(pem)
    with pytest.raises(KeyFileError, match=complaint) as caught:
        load_or_create(key_file.parent)
    assert str(key_file) in str(caught.value)
    assert key_file.read_bytes() == pem


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_open_to_others_is_refused(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_or_create(key_file.parent)


@pytest.mark.parametrize(
    ("owner", "mode", "accepted"), [(0, 0o440, True), (0, 0o460, False), (0, 0o444, False), (1000, 0o440, False)]
)
def test_a_group_may_read_only_what_belongs_to_root_and_is_mounted_for_us(key_file, monkeypatch, owner, mode, accepted):
    monkeypatch.setattr("auth.keys.os.geteuid", lambda: 1000)
    key_file.chmod(mode)
    status = list(key_file.stat())
    status[stat.ST_UID] = owner
    monkeypatch.setattr("auth.keys.os.fstat", lambda _: os.stat_result(status))
    if accepted:
        assert load_or_create(key_file.parent)
    else:
        with pytest.raises(KeyFileError, match="chmod 600"):
            load_or_create(key_file.parent)


def test_a_read_only_key_will_do(key_file):
    key_file.chmod(0o400)
    assert load_or_create(key_file.parent)


def test_a_directory_where_others_could_replace_the_key_is_refused(key_file):
    key_file.parent.chmod(0o777)
    with pytest.raises(KeyFileError, match="chmod 700"):
        load_or_create(key_file.parent)
    key_file.parent.chmod(0o1777)  # sticky, like a mounted volume: nobody else can rename it away
    assert load_or_create(key_file.parent)


def test_what_the_system_refuses_is_a_key_file_error_with_the_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileError, match="file"):
        load_or_create(tmp_path / "file" / "keys")
    (tmp_path / KEY_FILE).mkdir()
    with pytest.raises(KeyFileError, match=KEY_FILE):
        load_or_create(tmp_path)


def test_the_pem_is_pkcs8(key_file):
    assert isinstance(load_pem_private_key(key_file.read_bytes(), None), ec.EllipticCurvePrivateKey)
    assert key_file.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
