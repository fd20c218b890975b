"""HTML pages that need nothing beside them: pictures are in them, and nothing is fetched."""

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
    """A page of `templates/` about a data set.

    `pictures`: name → PNG file, which the template places by `picture(name, caption)`; `values`:
    what else it needs, `headline` (name → value) and `findings` (sentences) in any case.
    """

    def picture(name: str, caption: str, wide: bool = False) -> Markup:
        source = f"data:image/png;base64,{base64.b64encode(pictures[name]).decode()}"
        return Markup(
            '<figure{}><img alt="{}" src="{}"><figcaption>{}</figcaption></figure>'
        ).format(Markup(' class="wide"') if wide else "", caption, source, caption)

    return TEMPLATES.get_template(template).render(
        data=images.dataset,
        census=images.dataset.census,
        unreadable=images.unreadable,
        picture=picture,
        **values,
    )


def format_field(value: str) -> str:
    """A field of a run, as text, with three digits of a fraction."""
    return f"{float(value):.3g}" if "." in value else value
