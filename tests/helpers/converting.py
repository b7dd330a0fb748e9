"""Runs python -m networks.convert in this process."""

import contextlib
import io

from networks.convert import main


def convert(*arguments) -> tuple[int, str]:
    """(exit code, output to both streams)."""
    output, code = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return code, output.getvalue()
