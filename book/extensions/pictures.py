"""Sphinx extension: the pictures of a notebook, as light as they can be and look the same.

A PNG becomes a lossless WebP, or one of high quality if that saves most of it, as in a photograph.
The pictures of a dial become files, which the browser loads only when the dial shows them.
"""

import base64
import hashlib
import io
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.osutil import relative_uri

EMBEDDED = re.compile(r'<img width="(\d+)"([^>]*) src="data:image/webp;base64,([^"]+)">')


def light(picture: bytes) -> bytes:
    """The picture as WebP."""
    with Image.open(io.BytesIO(picture)) as image:
        opaque = image.convert("RGB") if image.getextrema()[-1] == (255, 255) else image
        sizes = []
        for options in ({"lossless": True}, {"quality": 90}):
            buffer = io.BytesIO()
            opaque.save(buffer, "webp", **options)
            sizes.append(buffer.getvalue())
    lossless, lossy = sizes
    return lossy if 2 * len(lossy) < len(lossless) else lossless


class Pictures(SphinxTransform):
    default_priority = 400

    def apply(self, **_: Any) -> None:
        for image in self.document.findall(nodes.image):
            if "/jupyter_execute/" in image["uri"] and image["uri"].endswith(".png"):
                drawn = Path(self.env.srcdir, image["uri"].lstrip("/"))
                drawn.with_suffix(".webp").write_bytes(light(drawn.read_bytes()))
                image["uri"] = image["uri"].removesuffix(".png") + ".webp"
        for raw in self.document.findall(nodes.raw):
            if "mlguide-frames" in raw.astext():
                raw[0] = nodes.Text(EMBEDDED.sub(self.linked, raw.astext()))

    def linked(self, found: re.Match[str]) -> str:
        """The same picture in a file; its height keeps its place while it is loaded."""
        width, rest, data = found.groups()
        picture = base64.b64decode(data)
        with Image.open(io.BytesIO(picture)) as image:
            height = round(int(width) * image.height / image.width)
        builder = self.app.builder
        folder = Path(builder.outdir, builder.imagedir)
        folder.mkdir(exist_ok=True)
        name = f"{hashlib.sha256(picture).hexdigest()}.webp"
        (folder / name).write_bytes(picture)
        src = relative_uri(builder.get_target_uri(self.env.docname), f"{builder.imagedir}/{name}")
        size = f'width="{width}" height="{height}"'
        return f'<img {size}{rest} loading="lazy" src="{src}">'


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(Pictures)
    return {"parallel_read_safe": True, "version": "1"}
