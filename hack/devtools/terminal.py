"""Commands on a terminal of their own, and what was on its screen."""

import os
import pty
import re
import subprocess
from collections.abc import Mapping, Sequence

# How rich goes back to the first line of what it draws anew.
_REDRAW = re.compile(r"\r?\x1b\[2K(?:\x1b\[1A\x1b\[2K)*")
_CURSOR = re.compile(r"\x1b\[\?25[lh]")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def on_terminal(
    command: Sequence[str], environment: Mapping[str, str], *, columns: int = 100, lines: int = 40, typed: str = ""
) -> tuple[int, str]:
    """(exit code, everything that it wrote, escape sequences and all) of a command that writes to a terminal.

    What is typed is there from the beginning; without it, the terminal is no stdin.
    """
    leader, follower = pty.openpty()
    size = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)}
    try:
        stdin = follower if typed else None
        process = subprocess.Popen(command, env={**environment, **size}, stdin=stdin, stdout=follower, stderr=follower)
        os.write(leader, typed.encode())
    finally:
        os.close(follower)
    written = b""
    try:
        while chunk := os.read(leader, 65536):
            written += chunk
    except OSError:  # that is how a terminal says that nobody is left
        pass
    finally:
        os.close(leader)
    return process.wait(), written.decode(errors="replace").replace("\r\n", "\n")


def frames(written: str) -> list[str]:
    """What was on the screen one after the other, of something that rich draws again and again; with its colours."""
    return [frame for part in _REDRAW.split(written) if (frame := _CURSOR.sub("", part).strip("\r\n"))]


def plain(written: str) -> str:
    """Without colours, and without blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in _COLOURS.sub("", written).splitlines())
