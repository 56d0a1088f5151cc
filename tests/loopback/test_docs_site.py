"""The documentation builds strictly: links lead somewhere, pages are in the navigation, nothing is fetched."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# what a browser fetches by itself, tag -> attribute
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
NOT_FETCHED = {"canonical", "next", "prev"}


def build(config: Path, into: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", into],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", into)
    assert done.returncode == 0, done.stderr
    return into


class Fetched(HTMLParser):
    """Addresses that a page has its reader's browser fetch, and diagrams that a script from elsewhere would draw."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in FETCHED and given.get("rel") not in NOT_FETCHED:
            self.found += [given.get(FETCHED[tag], "")]
        if "mermaid" in given.get("class", "").split():
            self.found += ["https: mermaid, which the theme fetches to draw this"]


def elsewhere(page: str) -> list[str]:
    return [address for address in Fetched(page).found if re.match("(https?:|//)", address)]


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    assert {page.name: found for page in pages if (found := elsewhere(page.read_text()))} == {}
    for sheet in (*site.rglob("*.css"), *site.rglob("*.svg")):
        assert not re.search(r"url\(['\"]?(https?:|//)|@import", sheet.read_text()), sheet


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://unpkg.com/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        '<img src="http://a/b.png">',
        '<pre class="mermaid"><code>flowchart LR</code></pre>',
    ],
)
def test_mutant_what_is_fetched_is_found(page: str) -> None:
    assert elsewhere(page)


def test_files_outside_docs_are_on_the_site(site: Path) -> None:
    assert "agent.simulator.enabled" in (site / "chart.html").read_text()
    assert "rehearse-node.yaml" in (site / "examples.html").read_text()


def test_runbooks_are_where_the_chart_links_to(site: Path) -> None:
    """With `monitoring.runbooksSuffix` .html."""
    pages = {page.stem for page in (ROOT / "docs/runbooks").glob("*.md")} - {"README"} | {"index"}
    assert {page.stem for page in (site / "runbooks").glob("*.html")} == pages


def test_diagrams_are_drawn(site: Path) -> None:
    """mermaid would be fetched from elsewhere."""
    for page, diagrams in (("sequences.html", 3), ("states.html", 1), ("readme.html", 1)):
        assert (site / page).read_text().count('role="img"><title>') == diagrams
    names = re.compile("sequenceDiagram|stateDiagram|flowchart")
    assert [page.name for page in site.rglob("*.html") if names.search(page.read_text())] == []


BROKEN = ["[gone](nowhere.md)", "[gone](index.md#nowhere)", "[gone](../examples/nowhere.yaml)"]


def copied(tmp_path: Path) -> Path:
    """The site's configuration and pages, in a folder of their own."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    config = (ROOT / "mkdocs.yml").read_text().replace("hack/docs_site.py", str(ROOT / "hack/docs_site.py"))
    (tmp_path / "mkdocs.yml").write_text(config)
    return tmp_path


def test_mutant_what_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    with (copied(tmp_path) / "docs/index.md").open("a") as page:
        page.write("".join(f"\n{link}\n" for link in BROKEN))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert [link for link in BROKEN if link[7:-1] not in done.stderr] == [], done.stderr


def test_mutant_a_page_outside_the_navigation_fails_the_build(tmp_path: Path) -> None:
    (copied(tmp_path) / "docs/lost.md").write_text("# Lost\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "lost.md" in done.stderr
