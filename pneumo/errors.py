"""The one exception that ends in a single line instead of a traceback."""

import re

IN_ADDRESS = re.compile(r"(?<=://)([^\s:@/\"'<>]*):[^\s@\"'<>]*@")
AS_OPTION = re.compile(r"(?i)((?:password|passwd|pwd)=)[^&\s\"'<>]+")


class Mistake(Exception):
    """Something only the user can put right; the command ends with exit code 2.

    The message is one line: the rule, what was received, what to do next.
    """

    def __str__(self) -> str:
        """What was received may be anything: it is shown in one line without any control."""
        line = re.sub(r"[^\S ]+", " ", without_passwords(super().__str__())).strip()
        return "".join(it if it.isprintable() else "\N{REPLACEMENT CHARACTER}" for it in line)


def without_passwords(text: str) -> str:
    """`text` with those hidden that stand in addresses.

    As `postgresql://USER:PASSWORD@HOST`, and as `postgresql://HOST/DATABASE?password=PASSWORD`.
    """
    return AS_OPTION.sub(r"\1***", IN_ADDRESS.sub(r"\1:***@", text))


def in_words(error: Exception) -> str:
    """What an exception says, to be kept or shown."""
    return without_passwords(f"{type(error).__name__}: {error}")
