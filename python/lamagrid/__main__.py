"""The command ``lamagrid``.

Runs the nouns ``pynode`` and ``model`` in Python, all others in Rust.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from lamagrid.global_flags import noun_first

EXIT_INTERRUPTED = 130  # as a shell says it of SIGINT
EXIT_BROKEN_PIPE = 141  # as a shell says it of SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, without the program's name. Returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    noun, *rest = noun_first(args) or [""]
    try:
        if noun == "pynode":
            from lamagrid.pynode.main import main as pynode

            return pynode(rest)
        if noun == "model":
            from lamagrid.weights.command import main as model

            return model(rest)
        from lamagrid import _native

        # Python's handler would only run once the command is over. The scheduler brings its own.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        return _native.main(args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone. Without this, Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


if __name__ == "__main__":
    sys.exit(main())
