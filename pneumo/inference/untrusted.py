"""What the decoders of untrusted files share: their error, lateral views, and no warnings."""

import re
import warnings

LATERAL_REASON = "lateral view; only frontal views are supported"

# Of a view position, or of the meaning of its code
LATERAL_PATTERN = re.compile(r"(?<![A-Z])([LR]L|[LR]?LAT|LATERAL)(?![A-Z])", re.IGNORECASE)


class UnreadableImageError(ValueError):
    """An error for a file that is not an image or is broken; the message says why."""


def is_lateral(view: str) -> bool:
    """Return whether a view is lateral; one of a patient who lies on a side (decubitus) is not."""
    return bool(LATERAL_PATTERN.search(view)) and "decubitus" not in view.lower()


def hide_warnings(package: str) -> None:
    """Hide the warnings of a package from now on.

    The images that cause them are either read nevertheless or rejected with a reason.
    """
    pattern = rf"{re.escape(package)}\."
    # In the form of the entries of `warnings.filters`
    entry = ("ignore", None, Warning, re.compile(pattern), 0)
    if entry not in warnings.filters:  # `warnings.catch_warnings` is not thread-safe
        warnings.filterwarnings("ignore", module=pattern)
