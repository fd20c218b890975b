"""A terminal in which commands run, and its screen."""

import codecs
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from contextlib import suppress
from dataclasses import dataclass

import pyte

from tests.support.paths import ROOT


@dataclass
class Seen:
    """Output of a command: the screen after each write, the whole output, its errors.

    `styles`: numbers of all styles that the command has set, colors included.
    """

    code: int
    screens: list[str]
    written: str
    styles: set[str]
    errors: str


def watch(*arguments: str, columns: int = 80, **environment: str) -> Seen:
    """Run Python with these arguments; only its standard output is a terminal of 24 lines."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = (
        "NO_COLOR",
        "COLUMNS",
        "LINES",
        "TF_CPP_MIN_LOG_LEVEL",
    )  # by whoever runs the tests
    kept = {name: value for name, value in os.environ.items() if name not in inherited}
    kept |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **environment}
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, env=kept, stdout=theirs, stderr=errors)
        os.close(theirs)
        seen = Seen(0, [], "", set(), "")
        _read(ours, seen)
        os.close(ours)
        seen.code = process.wait()
        errors.seek(0)
        seen.errors = errors.read()
    return seen


def _read(terminal: int, seen: Seen) -> None:
    screen = pyte.Screen(400, 100)  # so large that no line is broken and none is forgotten
    stream, decoder = pyte.Stream(screen), codecs.getincrementaldecoder("utf-8")()
    with suppress(OSError):  # where nobody writes any more
        while data := os.read(terminal, 65536):
            text = decoder.decode(data)
            stream.feed(text)
            seen.written += text
            seen.screens.append("\n".join(line.rstrip() for line in screen.display).rstrip("\n"))
    styles = re.findall(r"\x1b\[([\d;]*)m", seen.written)
    seen.styles |= {number for style in styles for number in style.split(";")}
