"""What the decoders of untrusted files share: their error, and no warnings."""

import re
import warnings


class UnreadableImageError(ValueError):
    """An error for a file that is not an image or is broken; the message says why."""


def hide_warnings(package: str) -> None:
    """Hide the warnings of a package from now on.

    The images that cause them are either read nevertheless or rejected with a reason.
    """
    pattern = rf"{re.escape(package)}\."
    # In the form of the entries of `warnings.filters`
    entry = ("ignore", None, Warning, re.compile(pattern), 0)
    if entry not in warnings.filters:  # `warnings.catch_warnings` is not thread-safe
        warnings.filterwarnings("ignore", module=pattern)
