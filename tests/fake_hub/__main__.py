"""`python -m tests.fake_hub [--port 8080]`: start the tests' Hub by hand, to try pushing and pulling on this
machine.
"""

import argparse
import sys
import threading

from tests.fake_hub.server import Hub


def main() -> None:
    """Serve until Ctrl-C. All contents are in memory, and are lost at the end."""
    parser = argparse.ArgumentParser(prog="python -m tests.fake_hub", description=main.__doc__)
    parser.add_argument(
        "--port", type=int, default=8080, help="of the Hub; 0 for any that is free (default: %(default)s)"
    )
    port = parser.parse_args().port
    try:
        hub = Hub(port)
    except OSError as error:
        parser.error(f"cannot listen at port {port} ({error.strerror}); --port 0 takes one that is free")
    hub.start()
    sys.stdout.write(
        f"# A Hub in memory. You are '{hub.user.name}'. In another shell:\n"
        f"export HF_ENDPOINT={hub.endpoint} HF_HUB_DISABLE_XET=1 HF_HOME=$(mktemp -d)\nexport HF_TOKEN={hub.user.token}\n# Ctrl-C ends it.\n"
    )
    sys.stdout.flush()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        hub.stop()


if __name__ == "__main__":
    main()
