"""Makes one site of the repository's pages: docs/, the README as its front page, and what they link to beside docs/.

On disk pages link to each other as a reader of the repository sees them. Here each link is written anew for the place
that the page has in the site. Notebooks and examples that are linked become pages too.
"""

import json
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?=[#)])")
_PAGES = (".md", ".py", ".ipynb")

_sources: dict[str, Path] = {}  # place in the site → file


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is linked from a page, or from what is added, and stands beside docs/; and the notebooks."""
    for notebook in sorted(DOCS.rglob("*.ipynb")):
        _add(notebook, files, config)
    written = (file for file in files.documentation_pages() if file.src_uri not in _sources)
    _sources.update({file.src_uri: DOCS / file.src_uri for file in written})
    waiting = [ROOT / "README.md", *_sources.values()]
    _add(waiting[0], files, config)
    while waiting:
        for path in _links(waiting.pop()):
            if _place(path) not in _sources and path.is_file() and DOCS not in path.parents:
                _add(path, files, config)
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write the links of a page for its place in the site."""
    here = _sources[page.file.src_uri]

    def moved(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(here.parent / found["path"]))
        if not target.is_file() or ROOT not in target.parents:
            return found["path"]
        return Path(os.path.relpath(_place(target), Path(page.file.src_uri).parent)).as_posix()

    return _LINK.sub(moved, markdown)


def _links(page: Path) -> list[Path]:
    """Files that a page links to."""
    if page.suffix != ".md":
        return []
    found = _LINK.finditer(page.read_text(encoding="utf-8"))
    return [Path(os.path.normpath(page.parent / link["path"])) for link in found]


def _place(path: Path) -> str:
    """Where a file of the repository stands in the site's sources."""
    if path == ROOT / "README.md":
        return "index.md"
    place = path.relative_to(DOCS if DOCS in path.parents else ROOT)
    return place.with_suffix(".md").as_posix() if path.suffix in _PAGES else place.as_posix()


def _add(path: Path, files: Files, config: MkDocsConfig) -> None:
    place = _place(path)
    _sources[place] = path
    if path.suffix in (".py", ".ipynb"):
        content = _notebook(path) if path.suffix == ".ipynb" else _script(path)
        files.append(File.generated(config, place, content=content))
    else:
        files.append(File.generated(config, place, abs_src_path=str(path)))


def _script(path: Path) -> str:
    return f"# {path.name}\n\n```python\n{path.read_text(encoding='utf-8')}```\n"


def _notebook(path: Path) -> str:
    """Its text, and its code as fences; outputs are not kept in the repository."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = ["".join(cell["source"]) for cell in cells]
    shown = [
        part if cell["cell_type"] == "markdown" else f"```python\n{part}\n```"
        for cell, part in zip(cells, parts, strict=True)
    ]
    download = f'<a href="../{path.name}" download>Download the notebook</a>'
    shown.insert(1, f"{download}. It runs offline, on what comes with the package.")
    return "\n\n".join(shown) + "\n"
