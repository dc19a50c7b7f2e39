"""Where signing keys are kept: files, and encrypted rows on either database. What holds for all of them comes first."""

import asyncio
import base64
import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from auth.audit import SYSTEM, Actor
from auth.database import Database, DatabaseUnavailable
from auth.keyfiles import KEY_FILE, SECRET_FILE, FileKeyStore, KeyFileError, load, load_or_create
from auth.keys import SigningKey
from auth.keystore import DatabaseKeyStore, KeyAdded, KeyStoreError, KeyStoreReadOnly, UnknownKid
from auth.tables import audit_log, signing_keys
from tests.auth.test_keys import RSA

ENCRYPTION_KEY = base64.b64encode(b"k" * 32).decode()
OPERATOR = Actor("cli", "operator")
KEYS = {algorithm: SigningKey.generate(algorithm) for algorithm in ("ES256", "HS256")} | {"RS256": RSA}


@pytest.fixture(params=["files", "sqlite", "postgres"])
def make_store(request, tmp_path, database):
    """Makes the stores of several processes, all on the same keys."""
    if request.param == "files":
        return lambda: FileKeyStore(tmp_path / "keys", database)
    engine = request.getfixturevalue(request.param)
    return lambda: DatabaseKeyStore(Database(engine, timeout_seconds=30), ENCRYPTION_KEY)


@pytest.fixture
def rows(engine):
    return DatabaseKeyStore(Database(engine), ENCRYPTION_KEY)


async def records(database):
    async with database.transaction() as connection:
        found = (await connection.execute(sa.select(audit_log).order_by(audit_log.c.id))).all()
    return [(row.actor_name, row.action, row.target) for row in found]


# every store


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_key_is_found_by_another_process_with_its_time(make_store, algorithm):
    key = KEYS[algorithm]
    assert await make_store().load() == []
    await make_store().add(key, 1_800_000_000, known=0)
    (found,) = await make_store().load()
    assert (found.key, found.activates_at) == (key, 1_800_000_000)
    assert found.key.to_bytes() == key.to_bytes()
    assert found.created_at > 1_700_000_000


async def test_the_first_key_signs_since_ever(make_store):
    await make_store().add(KEYS["ES256"], 0, known=0)
    assert [each.activates_at for each in await make_store().load()] == [0]


async def test_who_does_not_know_all_keys_is_refused(make_store):
    store = make_store()
    await store.add(SigningKey.generate(), 0, known=0)
    for known in (0, 2):
        with pytest.raises(KeyAdded):
            await store.add(SigningKey.generate(), 1, known=known)
    assert len(await store.load()) == 1
    await store.add(SigningKey.generate(), 1, known=1)
    assert len(await store.load()) == 2


async def test_of_eight_who_add_at_once_one_does(make_store):
    stores = [make_store() for _ in range(8)]
    adding = (store.add(SigningKey.generate(), 0, known=0) for store in stores)
    outcomes = await asyncio.gather(*adding, return_exceptions=True)
    assert sorted(map(type, outcomes), key=str) == sorted([type(None), *[KeyAdded] * 7], key=str)
    assert len(await stores[0].load()) == 1


async def test_a_revoked_key_is_gone_and_its_name_is_unknown(make_store):
    store, other = make_store(), make_store()
    first, second = SigningKey.generate(), SigningKey.generate()
    await store.add(first, 0, known=0)
    await store.add(second, 1, known=1)
    await other.load()
    await store.revoke(first.kid, by=OPERATOR)
    for each in (store, other):
        assert [found.key for found in await each.load()] == [second]
        for kid in (first.kid, "", "../signing-key.pem", "' OR 1=1 --"):
            with pytest.raises(UnknownKid):
                await each.revoke(kid, by=OPERATOR)
    await store.add(SigningKey.generate(), 2, known=1)  # what is revoked does not count


@pytest.mark.parametrize("where", ["files", "rows"])
async def test_every_change_is_in_the_audit_log_and_nothing_that_failed(sqlite, tmp_path, where):
    database = Database(sqlite)
    files = where == "files"
    store = FileKeyStore(tmp_path / "keys", database) if files else DatabaseKeyStore(database, ENCRYPTION_KEY)
    key = SigningKey.generate()
    await store.add(key, 0, known=0, by=OPERATOR)
    with pytest.raises(KeyAdded):
        await store.add(SigningKey.generate(), 0, known=0, by=OPERATOR)
    await store.revoke(key.kid, by=OPERATOR)
    with pytest.raises(UnknownKid):
        await store.revoke(key.kid, by=OPERATOR)
    assert await records(database) == [
        ("operator", "signing_key.rotate", key.kid),
        ("operator", "signing_key.revoke", key.kid),
    ]


# rows


@pytest.mark.parametrize("algorithm", KEYS)
async def test_no_private_key_is_readable_in_the_database(rows, engine, algorithm):
    key = KEYS[algorithm]
    await rows.add(key, 0, known=0)
    async with engine.connect() as connection:
        (row,) = (await connection.execute(sa.select(signing_keys))).all()
    assert key.to_bytes() not in row.sealed
    assert b"PRIVATE KEY" not in row.sealed
    await rows.revoke(key.kid, by=SYSTEM)
    async with engine.connect() as connection:
        (row,) = (await connection.execute(sa.select(signing_keys))).all()
    assert row.sealed == b""  # nothing to decrypt, whoever gets the encryption key


async def test_no_two_keys_are_sealed_alike(rows):
    assert rows._seal(RSA) != rows._seal(RSA)


async def test_another_encryption_key_is_an_error_that_names_the_setting(rows, engine):
    await rows.add(SigningKey.generate(), 0, known=0)
    stranger = DatabaseKeyStore(Database(engine), base64.b64encode(b"x" * 32).decode())
    with pytest.raises(KeyStoreError, match="TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY"):
        await stranger.load()


@pytest.mark.parametrize(
    "setting",
    ["", "x", "k" * 32, "é" * 44, ENCRYPTION_KEY[:-1], ENCRYPTION_KEY[:20] + "!" + ENCRYPTION_KEY[20:]]
    + [base64.b64encode(b"k" * length).decode() for length in (16, 24, 31, 33)],
)
def test_what_is_not_32_bytes_in_base64_is_no_encryption_key(database, setting):
    with pytest.raises(KeyStoreError, match=r"TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY.*openssl") as caught:
        DatabaseKeyStore(database, setting)
    assert setting == "" or f" {setting}" not in str(caught.value)


async def test_either_base64_alphabet_and_a_line_end_will_do(engine):
    raw = b"\xfb\xff" * 16
    key = SigningKey.generate()
    await DatabaseKeyStore(Database(engine), base64.b64encode(raw).decode()).add(key, 0, known=0)
    again = DatabaseKeyStore(Database(engine), base64.urlsafe_b64encode(raw).decode() + "\n")
    assert [each.key for each in await again.load()] == [key]


async def test_rows_that_were_tampered_with_are_refused(rows, engine):
    first, second = SigningKey.generate(), SigningKey.generate()
    await rows.add(first, 0, known=0)
    await rows.add(second, 1, known=1)
    async with engine.connect() as connection:
        found = (await connection.execute(sa.select(signing_keys))).all()
    sealed = {row.kid: row.sealed for row in found}
    for forged in (sealed[second.kid], sealed[first.kid][:-1] + b"\0", sealed[first.kid][:10], b""):
        await change(engine, first.kid, sealed=forged)
        with pytest.raises(KeyStoreError):
            await DatabaseKeyStore(Database(engine), ENCRYPTION_KEY).load()
    # A private key taken for a secret would be one for HS256.
    await change(engine, first.kid, sealed=sealed[first.kid], algorithm="HS256")
    with pytest.raises(KeyStoreError, match=first.kid):
        await DatabaseKeyStore(Database(engine), ENCRYPTION_KEY).load()


async def change(engine, kid, **values):
    async with engine.begin() as connection:
        await connection.execute(signing_keys.update().where(signing_keys.c.kid == kid).values(**values))


async def test_a_key_is_decrypted_once_and_dropped_when_it_is_revoked(rows, monkeypatch):
    await rows.add(RSA, 0, known=0)
    (before,) = await rows.load()
    with monkeypatch.context() as patch:
        patch.setattr(SigningKey, "from_pem", None)
        (after,) = await rows.load()
    assert after.key is before.key
    await rows.revoke(RSA.kid, by=SYSTEM)
    assert await rows.load() == []
    assert not rows._opened


async def test_a_database_that_is_away_is_said_so(connect):
    store = DatabaseKeyStore(Database(connect("sqlite+aiosqlite:////nowhere/at/all.db")), ENCRYPTION_KEY)
    for work in (store.load(), store.add(RSA, 0, known=0), store.revoke(RSA.kid, by=SYSTEM)):
        with pytest.raises(DatabaseUnavailable):
            await work


# files


@pytest.fixture
def key_file(tmp_path):
    directory = tmp_path / "keys"
    load_or_create(directory)
    return directory / KEY_FILE


@pytest.fixture
def read_only(monkeypatch):
    """As of a volume that is mounted to be read only."""
    opened = os.open

    def refuse(path, flags, *args, **options):
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *args, **options)

    monkeypatch.setattr("auth.keyfiles.os.open", refuse)


def kids(directory):
    return {each.key.kid for each in load(directory)}


def test_a_first_start_makes_a_key_only_its_owner_can_read_and_keeps_it(tmp_path):
    directory = tmp_path / "state" / "keys"
    (first,) = load_or_create(directory)
    assert (first.key.algorithm, first.activates_at) == ("ES256", 0)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in directory.iterdir()] == [KEY_FILE]
    assert [each.key for each in load_or_create(directory)] == [first.key]


@pytest.mark.parametrize(("algorithm", "name"), [("RS256", KEY_FILE), ("HS256", SECRET_FILE)])
def test_a_first_start_makes_a_key_for_the_configured_algorithm(tmp_path, algorithm, name):
    (first,) = load_or_create(tmp_path, algorithm)
    assert first.key.algorithm == algorithm
    assert [path.name for path in tmp_path.iterdir()] == [name]


async def test_the_name_of_a_file_says_from_when_on_its_key_signs(tmp_path, database):
    store = FileKeyStore(tmp_path, database)
    await store.add(RSA, 1_800_000_000.9, known=0)
    assert (tmp_path / f"20270115T080000Z-{RSA.kid[:8]}.pem").exists()
    (tmp_path / "20270115T080001Z-of the vault.pem").write_bytes(KEYS["ES256"].to_bytes())
    (tmp_path / "20270115T080001Z-of the vault.pem").chmod(0o600)
    for stranger in ("README", ".20270115T080001Z-x.pem.abc", "other.pem", "20270115T080002Z-x.pem.bak"):
        (tmp_path / stranger).write_text("not a key")
    assert [(each.key.kid, each.activates_at) for each in await store.load()] == [
        (RSA.kid, 1_800_000_000),
        (KEYS["ES256"].kid, 1_800_000_001),
    ]
    (tmp_path / "20270115T080001Z-of the vault.pem").rename(tmp_path / "20271315T080001Z-of the vault.pem")
    with pytest.raises(KeyFileError, match="no valid time"):
        await store.load()


async def test_a_revoked_key_leaves_no_copy(key_file, database):
    (found,) = load(key_file.parent)
    (key_file.parent / "20270115T080000Z-copy.pem").write_bytes(key_file.read_bytes())
    (key_file.parent / "20270115T080000Z-copy.pem").chmod(0o600)
    await FileKeyStore(key_file.parent, database).revoke(found.key.kid, by=OPERATOR)
    assert kids(key_file.parent) == set()


async def test_where_files_cannot_be_written_keys_are_read_and_a_change_is_refused(key_file, database, read_only):
    store = FileKeyStore(key_file.parent, database)
    (found,) = await store.load()
    for work in (store.add(RSA, 0, known=1), store.revoke(found.key.kid, by=OPERATOR)):
        with pytest.raises(KeyStoreReadOnly, match=r"keys.*Read-only file system"):
            await work
    assert await store.load() == [found]


async def test_a_change_of_files_is_logged_where_the_audit_log_is_away(tmp_path, connect):
    store = FileKeyStore(tmp_path / "keys", Database(connect("sqlite+aiosqlite:////nowhere/at/all.db")))
    with capture_logs() as logs:
        await store.add(RSA, 0, known=0, by=OPERATOR)
    assert kids(tmp_path / "keys") == {RSA.kid}
    assert [(line["event"], line["action"], line["target"]) for line in logs] == [
        ("audit", "signing_key.rotate", RSA.kid)
    ]


def test_eight_threads_end_with_one_key(tmp_path):
    barrier, found = threading.Barrier(8), []

    def start():
        barrier.wait()
        found.extend(load_or_create(tmp_path / "keys"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({each.key.kid for each in found}) == 1
    assert [path.name for path in (tmp_path / "keys").iterdir()] == [KEY_FILE]


def test_four_processes_end_with_one_key(tmp_path):
    program = (
        "import sys; from pathlib import Path; from auth.keyfiles import load_or_create; print('ready', flush=True);"
        "sys.stdin.readline(); print(*(each.key.kid for each in load_or_create(Path(sys.argv[1]))))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "keys"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = [process.communicate(timeout=30)[0] for process in processes]
    assert len(set(found)) == 1
    assert len(found[0].strip()) == 43


def test_a_file_without_a_key_that_can_sign_is_refused_by_name_and_left_alone(key_file):
    for content in (b"", b"\xff\0 not a key", key_file.read_bytes()[:-60]):
        key_file.write_bytes(content)
        with pytest.raises(KeyFileError, match="no private key in PEM") as caught:
            load_or_create(key_file.parent)
        assert str(key_file) in str(caught.value)
        assert key_file.read_bytes() == content


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_open_to_others_is_refused(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_or_create(key_file.parent)


@pytest.mark.parametrize(
    ("owner", "mode", "accepted"), [(0, 0o440, True), (0, 0o460, False), (0, 0o444, False), (1000, 0o440, False)]
)
def test_a_group_may_read_only_what_belongs_to_root_and_is_mounted_for_us(key_file, monkeypatch, owner, mode, accepted):
    monkeypatch.setattr("auth.keyfiles.os.geteuid", lambda: 1000)
    key_file.chmod(mode)
    status = list(key_file.stat())
    status[stat.ST_UID] = owner
    monkeypatch.setattr("auth.keyfiles.os.fstat", lambda _: os.stat_result(status))
    if accepted:
        assert load_or_create(key_file.parent)
    else:
        with pytest.raises(KeyFileError, match="chmod 600"):
            load_or_create(key_file.parent)


def test_a_key_that_its_owner_cannot_write_will_do(key_file):
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
