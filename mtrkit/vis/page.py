"""A page in one file, that needs no server and no network: a template, its style and script, and data as JSON.

Data never becomes markup: the script sets text only, and the page's own policy lets a browser run just this script.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

Kind = Literal["tokens", "compare"]

_PLACE = re.compile(r"\{\{(\w+)\}\}")
_ESCAPES = {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "\u2028": r"\u2028", "\u2029": r"\u2029"}


def render_page(kind: Kind, title: str, data: Mapping[str, Any]) -> str:
    """Return a page as HTML.

    Args:
        kind: Which; ``mtrkit/vis/pages`` has its parts.
        title: Of the page, as plain text.
        data: What it shows, in what JSON knows.
    """
    style, script = (_part(f"base.{suffix}") + _part(f"{kind}.{suffix}") for suffix in ("css", "js"))
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "body": _part(f"{kind}.html"),
        "data": as_script(data),
        "script": script,
    }
    return _PLACE.sub(lambda place: parts[place[1]], _part("page.html"))


def as_script(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside of a script element, whatever text is in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: _ESCAPES[found[0]], text)


def data_of(page: str) -> Any:
    """What :func:`render_page` was given as data, read back from a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    if found is None:
        raise ValueError("this is not a page that mtrkit wrote: it holds no data")
    return json.loads(found[1])


def _part(name: str) -> str:
    return (resources.files("mtrkit.vis") / "pages" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """A source of a content security policy that stands for this text alone."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
