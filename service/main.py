"""The ASGI application, for a server to import. The only import-time side effect in the repository."""

from service.app import create_app
from service.settings import load_settings

app = create_app(load_settings())
