"""A child process to supervise, and what is said about it."""

import sys
from pathlib import Path
from typing import Any

from service.local.supervisor import BackOff, Supervisor
from tests.support.service import free_port

# Answers /health on the port it is given. The flags: late (it answers only the third time), deaf (SIGTERM does not end
# it), parent (it has a child of its own, whose pid it writes down).
CHILD = """
import http.server, os, pathlib, signal, subprocess, sys
port, directory, flags = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
if "deaf" in flags:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "parent" in flags:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    (directory / "grandchild").write_text(str(child.pid))
answers = iter([503, 503])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(next(answers, 200) if "late" in flags else 200)
        self.end_headers()

    def log_message(self, *_):
        print("asked", flush=True)

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
QUICK = BackOff(first=0.01, longest=0.05)


def supervised(directory: Path, *flags: str, code: str = CHILD, **options: Any) -> Supervisor:
    """A supervisor of CHILD, or of another script that gets the same arguments."""
    port = free_port()
    command = [sys.executable, "-c", code, str(port), str(directory), *flags]
    options = {"back_off": QUICK, "start_seconds": 20.0, "output": directory / "output.txt", **options}
    return Supervisor("the child", command, health_url=f"http://127.0.0.1:{port}/health", **options)
