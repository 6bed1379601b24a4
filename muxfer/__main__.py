"""Start `muxfer`, or `python -m muxfer`. A signal during the first imports ends it at once: nothing has begun."""

import os
import signal
from types import FrameType


def _leave(signum: int, frame: FrameType | None) -> None:
    os.write(2, f"muxfer: stopped by {signal.Signals(signum).name}; nothing was begun\n".encode())
    os._exit(130 if signum == signal.SIGINT else 143)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _leave)
    from muxfer import cli

    cli.main()


if __name__ == "__main__":
    main()
