"""Hooks of mkdocs (`mkdocs.yml`): what the site shows of files outside docs/.

A link of a page to a file of the repository is right for who reads the repository. For the site, the READMEs of the
repository and of the chart and the examples become pages, and any other file is put below `repository/`. Links to what
does not exist stay as they are, so that the strict build refuses them. Diagrams in mermaid become SVG. In the
navigation, a folder (`decisions/`) stands for all of its pages.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs runs this file by its path

from devtools.pictures import device, flow
from devtools.sequence_picture import draw

ROOT = Path(__file__).resolve().parents[1]
READMES = {"README.md": "readme.md", "charts/vfio-migration/README.md": "chart.md"}
PAGES = {**READMES, "examples": "examples.md", "docs/decisions": "decisions/README.md"}
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")
MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.M | re.S)


def drawn(match: re.Match[str]) -> str:
    """A mermaid diagram as SVG: mermaid itself would be fetched from elsewhere. Raises ValueError if it cannot be."""
    known = {"stateDiagram-v2": device, "flowchart LR": flow}
    draw_known = known.get(match[1].partition("\n")[0])
    drawing = draw_known() if draw_known else draw(match[1])
    return f"<div>\n{drawing.text()}</div>"


def examples() -> str:
    """The page of all examples."""
    parts = ["# Examples", "Files of the repository, to be applied as they are or with names changed."]
    for folder, title in (("examples", "Objects"), ("examples/values", "Values of the chart")):
        parts.append(f"## {title}")
        paths = sorted((ROOT / folder).glob("*.yaml"))
        parts += [f"### {path.name}\n\n```yaml\n{path.read_text()}```" for path in paths]
    return "\n\n".join(parts) + "\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Unfold the folders of the navigation: README first, the others by name."""
    docs = Path(config.docs_dir)

    def unfold(item: Any) -> Any:
        if isinstance(item, list):
            return [unfold(one) for one in item]
        if isinstance(item, dict):
            return {title: unfold(one) for title, one in item.items()}
        if item.endswith("/"):
            pages = sorted((docs / item).glob("*.md"), key=lambda path: (path.name != "README.md", path.name))
            return [f"{item}{path.name}" for path in pages]
        return item

    config.nav = unfold(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for path, uri in READMES.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text()))
    files.append(File.generated(config, "examples.md", content=examples()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ to where the site has what they point at."""
    uri = page.file.src_uri
    written_in = {uri: path for path, uri in READMES.items()}.get(uri, f"docs/{uri}")

    def led(match: re.Match[str]) -> str:
        there = posixpath.normpath(posixpath.join(posixpath.dirname(written_in), match[1]))
        if there.startswith("../") or not (ROOT / there).exists():
            return match[1]
        to = PAGES.get(there) or (there.removeprefix("docs/") if there.startswith("docs/") else f"repository/{there}")
        if files.get_file_from_path(to) is None and (ROOT / there).is_file():
            files.append(File.generated(config, to, abs_src_path=str(ROOT / there)))
        return posixpath.relpath(to, posixpath.dirname(uri) or ".")

    return LINK.sub(led, MERMAID.sub(drawn, markdown))
