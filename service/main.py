"""The ASGI application, for a server to import. The only import-time side effect in the repository."""

from service.app import create_app
from service.settings import Settings

app = create_app(Settings())
