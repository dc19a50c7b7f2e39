"""Every table of this room. SQLite and PostgreSQL; service/migrations makes them, and a test holds the two together.

Nothing here is a secret that could be used as it is. Passwords are Argon2id hashes. Client secrets, API keys and
refresh tokens are SHA-256 hashes, of 256 random bits, which no list of guesses covers. Private keys are encrypted.
"""

from typing import Final

import sqlalchemy as sa

from observability.columns import UtcDateTime

metadata = sa.MetaData()

teams = sa.Table(
    "teams",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.UniqueConstraint("name", name="uq_teams_name"),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("username", sa.Text, nullable=False),
    sa.Column("password_hash", sa.Text, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),  # a scope string
    sa.Column("disabled", sa.Boolean, nullable=False, default=False, server_default=sa.false()),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("team_id", sa.String(36), sa.ForeignKey("teams.id", name="fk_users_team_id"), index=True),
    sa.UniqueConstraint("username", name="uq_users_username"),
)

clients = sa.Table(
    "clients",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # the client_id of RFC 6749 §2.2
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("secret_hash", sa.String(64)),  # NULL: a public client (RFC 6749 §2.1)
    sa.Column("grants", sa.Text, nullable=False),  # grant types, with a space between them
    sa.Column("scopes", sa.Text, nullable=False),  # a scope string: the most that a token for it can carry
    sa.Column("disabled", sa.Boolean, nullable=False, default=False, server_default=sa.false()),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("team_id", sa.String(36), sa.ForeignKey("teams.id", name="fk_clients_team_id"), index=True),
)

# What a login begins. Its refresh tokens are a family (RFC 9700 §4.14.2): they live and die together.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("user_id", sa.Text, sa.ForeignKey("users.id", name="fk_sessions_user_id"), nullable=False, index=True),
    sa.Column("client_id", sa.String(64), nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),  # as granted at login; a refresh never adds to it
    sa.Column("address", sa.String(64), nullable=False),  # where the login came from
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("last_used_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False, index=True),
    sa.Column("revoked_at", UtcDateTime),
    sa.Column("revoked_because", sa.String(32)),
)

refresh_tokens = sa.Table(
    "refresh_tokens",
    metadata,
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column(
        "session_id",
        sa.String(36),
        sa.ForeignKey("sessions.id", name="fk_refresh_tokens_session_id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("spent_at", UtcDateTime),
    sa.Column("successor_hash", sa.String(64)),
    # The successor under a key made from this token: for the client that lost the answer, and nobody else.
    sa.Column("successor_sealed", sa.LargeBinary),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),  # the public part of the key
    sa.Column("secret_hash", sa.String(64), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text, sa.ForeignKey("users.id", name="fk_api_keys_user_id"), nullable=False, index=True),
    sa.Column("scopes", sa.Text, nullable=False),  # a scope string; allowed models are scopes (`llm:<model>`)
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),  # NULL: none
    sa.Column("last_used_at", UtcDateTime),  # to the minute, written behind
    sa.Column("revoked_at", UtcDateTime),
)

# Tells every worker what to forget. Rows are of use only until the last token they concern has expired.
revocations = sa.Table(
    "revocations",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),  # token, session, user, client, key
    sa.Column("value", sa.String(64), nullable=False),  # jti, session id, user id, client_id, key id
    sa.Column("issued_before", UtcDateTime, nullable=False),  # credentials issued, or read, up to this instant
    sa.Column("created_at", UtcDateTime, nullable=False, index=True),
    sa.Column("expires_at", UtcDateTime, nullable=False, index=True),
)

signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("kid", sa.String(64), primary_key=True),
    # Counts up from 1. Unique, so that of two replicas that rotate at once one is refused.
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("algorithm", sa.String(8), nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),  # the private key, AES-256-GCM, the kid as associated data
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("activates_at", UtcDateTime, nullable=False),
    sa.Column("revoked_at", UtcDateTime),
    sa.UniqueConstraint("generation", name="uq_signing_keys_generation"),
)

login_failures = sa.Table(
    "login_failures",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),  # a hash of what is counted: people type passwords as names
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("last_failure_at", UtcDateTime),
    sa.Column("last_success_at", UtcDateTime),
    sa.Column("updated_at", UtcDateTime, nullable=False, index=True),
)

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),  # ordered by time
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),  # id of a user or client, "oidc:..." of others, "cli" or "system"
    sa.Column("actor_name", sa.Text, nullable=False),
    sa.Column("action", sa.String(48), nullable=False),
    sa.Column("target_kind", sa.String(16), nullable=False),
    sa.Column("target", sa.String(64), nullable=False),  # an id
    sa.Column("target_name", sa.Text, nullable=False),
    sa.Column("team_id", sa.String(36)),  # of the target: whose admin may read it
    sa.Column("result", sa.String(16), nullable=False),  # ok, refused
    sa.Column("address", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Index("ix_audit_log_team_id_id", "team_id", "id"),
)

_NO_CHANGE: Final = {
    "sqlite": [
        f"CREATE TRIGGER audit_log_no_{verb} BEFORE {verb} ON audit_log "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        for verb in ("update", "delete")
    ],
    "postgresql": [
        (
            "CREATE OR REPLACE FUNCTION audit_log_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
        ),
        (
            "CREATE TRIGGER audit_log_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_log_append_only()"
        ),
    ],
}


def _refuse_changes(_table: sa.Table, connection: sa.Connection, **_: object) -> None:
    for statement in _NO_CHANGE.get(connection.dialect.name, []):
        connection.exec_driver_sql(statement)


sa.event.listen(audit_log, "after_create", _refuse_changes)
