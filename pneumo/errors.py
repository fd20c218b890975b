"""The one exception that ends in a single line instead of a traceback."""


class Mistake(Exception):
    """Something only the user can put right; the command ends with exit code 2.

    The message is one line: the rule, what was received, what to do next.
    """
