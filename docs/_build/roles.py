"""Docstrings as Markdown: names in Sphinx's way become links to the pages of the public API, sessions become code."""

import ast
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":\w+:`~?([\w.]+)`")
_SESSION = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)
_DOUBLE = re.compile(r"``([^`]+)``")
_HIDDEN = {  # by modules of the same name
    "mtrkit.calibrate": "mtrkit.calibration.calibrate.calibrate",
    "mtrkit.export": "mtrkit.exporting.export.export",
}
_PACKAGE = Path(__file__).parents[2] / "mtrkit" / "__init__.py"


def public_names() -> set[str]:
    """What ``mtrkit.__all__`` lists, read without importing the package."""
    for node in ast.parse(_PACKAGE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


class SphinxRoles(Extension):
    """Changes each docstring before it is read for its sections."""

    def __init__(self) -> None:
        super().__init__()
        self.public = public_names()

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Called once for every module, class, function and attribute."""
        if obj.docstring is not None:
            text = _DOUBLE.sub(r"`\1`", _ROLE.sub(self._link, obj.docstring.value))
            obj.docstring.value = _SESSION.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)

    def _link(self, found: re.Match[str]) -> str:
        """A link if any part of the dotted name is public, such as ``Trace`` of ``mtrkit.patch.Trace.sequence``."""
        parts = found[1].split(".")
        shown = parts[-1] if "~" in found[0] else found[1]
        ours = parts[0] == "mtrkit" or parts[0] in self.public
        public = next((place for place, part in enumerate(parts) if ours and part in self.public), None)
        if public is None:
            return f"`{shown}`"
        place = ".".join(["mtrkit", *parts[public:]])
        return f"[`{shown}`][{_HIDDEN.get(place, place)}]"
