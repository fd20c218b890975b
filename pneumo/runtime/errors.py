"""The exceptions that end in a single line instead of a traceback, and what it may quote."""

import re
import unicodedata

USER_ERROR = 2  # exit code
PREFIX = "pneumo: "  # of the line on standard error that says why a command failed

LONGEST = 1_500  # characters of a message
QUOTED = 120  # characters of what a message quotes

NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # Unicode's names for control characters, surrogates, line ends

IN_ADDRESS = re.compile(r"(?<=://)([^\s:@/\"'<>]*):[^\s@\"'<>]*@")
AS_OPTION = re.compile(r"(?i)((?:password|passwd|pwd)=)[^&\s\"'<>]+")


class Mistake(Exception):
    """Something only the user can put right; the command ends with exit code 2.

    The message is one line: the rule, what was received, what to do next. Whatever a stranger's
    name or value in it holds, it is printable, of bounded length and without passwords.
    """

    def __str__(self) -> str:
        line = re.sub(r"[^\S ]+", " ", without_passwords(super().__str__())).strip()
        return shown(line, LONGEST)


class StudyStopped(RuntimeError):
    """A study without a result, for a reason that the message gives in one line."""


def without_passwords(text: str) -> str:
    """`text` with those hidden that stand in addresses.

    As `postgresql://USER:PASSWORD@HOST`, and as `postgresql://HOST/DATABASE?password=PASSWORD`.
    """
    return AS_OPTION.sub(r"\1***", IN_ADDRESS.sub(r"\1:***@", text))


def in_words(error: Exception) -> str:
    """What an exception says, to be kept or shown."""
    return without_passwords(f"{type(error).__name__}: {error}")


def reason_for(error: Exception) -> str:
    """Return one line that says why a command failed, to be stored with its run."""
    return str(error) if isinstance(error, Mistake) else shown(in_words(error), LONGEST)


def shown(value: object, most: int = QUOTED) -> str:
    """`value` as a message can quote it: what is not printable escaped, the middle cut out."""
    text = "".join(map(_printable, str(value)))
    return text if len(text) <= most else f"{text[: most - 41]}…{text[-40:]}"


def is_text(value: str) -> bool:
    """Whether `value` is text that can be printed in one line and stored anywhere as UTF-8."""
    return not any(unicodedata.category(it) in NO_TEXT for it in value)


def _printable(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()
