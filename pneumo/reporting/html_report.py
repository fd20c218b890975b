"""Self-contained HTML pages: images are embedded, and nothing is loaded from elsewhere."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pneumo.data.dataset import DecodedDataset

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
)


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
    return f"{float(value):.3g}" if "." in value else value
