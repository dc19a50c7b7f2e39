"""The embedded model as the service sees it: one more upstream, named in a catalog."""

import socket
import sys
from pathlib import Path

import yaml

from service.local.model import MODEL_NAME, require_local_model
from service.local.supervisor import Supervisor

_HOST = "127.0.0.1"
# Calls wait in the model's own queue when all its slots are busy, and nothing is heard from it meanwhile.
_READ_SECONDS = 300


class LocalUpstream:
    """The model's process on a free port of this machine, and the catalog that leads to it.

    The port stays the same when the process is restarted. Both files are in `state_dir`, which exists.
    Raises LocalModelError when the model is not installed.
    """

    def __init__(self, state_dir: Path) -> None:
        require_local_model()
        port = _free_port()
        self._base_url = f"http://{_HOST}:{port}"
        self.catalog = state_dir / "local-catalog.yaml"
        self.process = Supervisor(
            "the embedded model",
            [sys.executable, "-m", "service.local", "--host", _HOST, "--port", str(port)],
            health_url=f"{self._base_url}/health",
            output=state_dir / "local-model.log",
            restart=True,
        )

    def write_catalog(self) -> None:
        """Write `catalog`, in the format of service/llm/catalog.py."""
        upstream = {
            "name": "local",
            "provider": "llama.cpp",
            "base_url": f"{self._base_url}/v1",
            "timeouts": {"read": _READ_SECONDS},
        }
        price = {"version": "free", "input": 0, "output": 0}
        document = {"models": [{"name": MODEL_NAME, "upstream": upstream, "price": price}]}
        self.catalog.write_text("# Written by `tollbook run` at each start.\n" + yaml.safe_dump(document))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
