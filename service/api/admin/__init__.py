"""The admin API and what users do to their own account. The rules are in auth/authority.py; here is HTTP."""

from fastapi import APIRouter
from pydantic import BaseModel

from service.api.admin import account, audit, clients, keys, sessions, signing_keys, teams, users

routers: tuple[APIRouter, ...] = (
    account.router,
    users.router,
    teams.router,
    clients.router,
    keys.router,
    sessions.router,
    audit.router,
    signing_keys.router,
)
bodies: tuple[type[BaseModel], ...] = (
    account.PasswordChange,
    users.NewUser,
    users.UserChange,
    users.NewPassword,
    teams.TeamName,
    clients.NewClient,
    clients.ClientChange,
    keys.KeyWish,
    keys.NewKey,
    keys.Rotation,
    signing_keys.KeyRotation,
)
"""What the routes read by hand, for the OpenAPI document."""
