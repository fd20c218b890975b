"""A terminal that commands run in, and what a person sees there."""

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
    """What a command has shown: the screen after each time that it wrote, all of it, its errors.

    `styles`: the numbers of all styles that were asked for, colours among them.
    """

    code: int
    screens: list[str]
    written: str
    styles: set[str]
    errors: str


def watch(*arguments: str, columns: int = 80, **environment: str) -> Seen:
    """Runs Python with these arguments; a terminal of 24 lines is its standard output alone."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    told = ("NO_COLOR", "COLUMNS", "LINES", "TF_CPP_MIN_LOG_LEVEL")  # by whoever runs the tests
    kept = {name: it for name, it in os.environ.items() if name not in told}
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
