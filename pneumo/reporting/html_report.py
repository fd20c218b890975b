"""Self-contained HTML pages: images are embedded, and nothing is loaded from elsewhere."""

import base64
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from pneumo.data.dataset import DecodedDataset

TEMPLATE_FOLDER = Path(__file__).parent / "templates"

TEMPLATES = Environment(
    loader=FileSystemLoader(TEMPLATE_FOLDER),
    autoescape=select_autoescape(default_for_string=False),  # of HTML, and not of Markdown
    undefined=StrictUndefined,
)

# Of every model, for the model card
INTENDED_USE = (
    "research on classifiers that distinguish pneumonia from normal in frontal chest X-rays of "
    "children one to five years old"
)
OUT_OF_SCOPE = (
    "any decision about a patient; adults, other views, other diseases, other kinds of images. The "
    "model predicts normal or pneumonia for these, too. It is not a medical device"
)


def _escape_cell(text: str) -> str:
    """Escape what would end a cell of a Markdown table, or would be read as markup in it."""
    return re.sub(r"([\\|<`\[])", r"\\\1", " ".join(text.split()))


TEMPLATES.filters["cell"] = _escape_cell


def render_template(
    template: str, images: DecodedDataset, pictures: Mapping[str, bytes], **values: Any
) -> str:
    """Render a page of `templates/` about a data set.

    Args:
        template: File name of the template.
        images: The data set.
        pictures: Name → PNG file. The template places them with `picture(name, caption)`.
        **values: Further values for the template; always `headline` (name → value) and `findings`
            (sentences).
    """

    def picture(name: str, caption: str, wide: bool = False) -> Markup:
        source = f"data:image/png;base64,{base64.b64encode(pictures[name]).decode()}"
        return Markup(
            '<figure{}><img alt="{}" src="{}"><figcaption>{}</figcaption></figure>'
        ).format(Markup(' class="wide"') if wide else "", caption, source, caption)

    return TEMPLATES.get_template(template).render(
        data=images.dataset,
        census=images.dataset.file_counts,
        unreadable=images.unreadable,
        picture=picture,
        **values,
    )


def format_field(value: str) -> str:
    """Format the text of a run's field, with three significant digits for a fraction."""
    with suppress(ValueError):  # the name of a file has a dot, too
        return f"{float(value):.3g}" if "." in value else value
    return value
