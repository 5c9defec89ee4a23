"""What a launcher starts in the place of a rank: it starts the rank and outlives it.

An MPI launcher ends all ranks at once, and without a word, when one of them dies. Below a guard a
rank's death is seen by the front alone (its connection ends), which says whose it was, answers
what was asked, and ends the others. The guard itself knows nothing of MPI: the rank inherits the
launcher's environment and descriptors. Run as a file, so that it starts in milliseconds.
"""

import os
import signal
import subprocess
import sys
import time

LINGER_S = 5.0
"""How long the front has to tell of a rank's death before the launcher notices."""


def main(command: list[str]) -> int:
    """Run `command`; its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the front's
    child = subprocess.Popen(command, close_fds=False)
    signal.signal(signal.SIGTERM, lambda number, frame: child.kill())
    code = child.wait()
    if code == -signal.SIGALRM:
        message = "a rank gave up: the others did not come to MPI's beginning, or to its end"
        print(f"paddock: error: {message}", file=sys.stderr)
    elif code < 0:
        # The front kills what is left; a launcher that saw this first would be faster than it.
        time.sleep(LINGER_S)
    return abs(code)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main(sys.argv[1:]))
