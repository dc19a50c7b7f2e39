"""`python -m service.local --port N`: the embedded model, in this process."""

import argparse
import sys

from service.local.model import LocalModelError
from service.local.server import PortTakenError, serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m service.local", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    # No other address can be given: this server lets in whoever can reach it.
    parser.add_argument("--host", default="127.0.0.1", choices=("127.0.0.1", "::1"))
    arguments = parser.parse_args()
    try:
        serve(arguments.host, arguments.port)
    except (LocalModelError, PortTakenError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
