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

from tests.conftest import ROOT

# Colours, the cursor hidden or shown, a line erased, the cursor up, and what needs no escape
PARTS = re.compile(
    r"\x1b\[(?P<style>[\d;]*)m|\x1b\[\?25[lh]|(?P<erase>\x1b\[2K)|\x1b\[(?P<up>\d*)A"
    r"|(?P<move>[\r\n])|(?P<text>[^\x00-\x1f]+)"
)
UNFINISHED = re.compile(r"\x1b(\[[\d;?]*)?$")


class Screen:
    """What a terminal shows that forgets nothing, and whose lines are as long as they are."""

    def __init__(self) -> None:
        self.lines, self.row, self.column = [""], 0, 0
        self.styles: set[str] = set()  # the numbers of all that were asked for
        self._rest = ""

    def write(self, text: str) -> None:
        """Draws; what this terminal does not know is an error."""
        text, at = self._rest + text, 0
        while at < len(text) and not UNFINISHED.match(text, at):
            part = PARTS.match(text, at)
            assert part, f"unknown: {text[at : at + 20]!r}"
            self._draw(part)
            at = part.end()
        self._rest = text[at:]

    def _draw(self, part: re.Match) -> None:
        if part["style"] is not None:
            self.styles |= set(part["style"].split(";"))
        elif part["erase"]:
            self.lines[self.row] = ""
        elif part["up"] is not None:
            self.row -= int(part["up"] or 1)
            assert self.row >= 0
        elif part["move"] == "\r":
            self.column = 0
        elif part["move"] == "\n":
            self.row += 1
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif text := part["text"]:
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + text + line[self.column + len(text) :]
            self.column += len(text)

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")


@dataclass
class Seen:
    """What a command has shown: the screen after each time that it wrote, all of it, its errors."""

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
    screen, decoder = Screen(), codecs.getincrementaldecoder("utf-8")()
    with suppress(OSError):  # where nobody writes any more
        while data := os.read(terminal, 65536):
            text = decoder.decode(data)
            screen.write(text)
            seen.written += text
            seen.screens.append(str(screen))
    seen.styles = screen.styles
