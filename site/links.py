"""What is wrong with a folder of pages: python site/links.py build/site

Every link inside leads to a file and to an anchor that is there, every picture has a text, and no
page loads anything from a network.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself, by tag and attribute.
LOADED = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"),
          ("video", "src"), ("audio", "src"), ("div", "data-source")}  # fmt: skip
FETCHED = {"stylesheet", "icon", "preload", "modulepreload", "shortcut icon"}


class Page(HTMLParser):
    """A page's anchors, links (address and whether a browser loads it) and mute pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[str, bool]] = []
        self.mute: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if found.get("id"):
            self.anchors.add(found["id"])
        if tag == "a" and found.get("name"):
            self.anchors.add(found["name"])
        if tag == "img" and not (found.get("alt") or "").strip():
            self.mute.append((found.get("src") or "")[:80])
        for name in ("href", "src", "data-source"):
            if found.get(name):
                loaded = (tag, name) in LOADED
                if tag == "link":
                    loaded = found.get("rel") in FETCHED
                self.links.append((found[name], loaded))

    handle_startendtag = handle_starttag


def problems(folder: Path) -> list[str]:
    """One line for each thing that is wrong."""
    folder = folder.resolve()
    pages = {
        path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))
    }
    if not pages:
        return [f"{folder} holds no page"]
    return [
        f"{path.relative_to(folder).as_posix()}: {problem}"
        for path, page in pages.items()
        for problem in [
            *(f"a picture has no text: {source}" for source in page.mute),
            *filter(None, (_problem(path, link, pages, folder) for link in page.links)),
        ]
    ]


def _problem(path: Path, link: tuple[str, bool], pages: dict[Path, Page], folder: Path) -> str:
    address, loaded = link
    url = urlsplit(address)
    if url.scheme in ("data", "mailto", "javascript", "blob"):
        return ""
    if url.scheme or url.netloc:
        return f"loads {address} from a network" if loaded else ""
    if address.startswith("/"):
        return f"{address} is no address inside of a folder"
    target = (path.parent / unquote(url.path)).resolve() if url.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.exists() or not target.is_relative_to(folder):
        return f"{address} leads nowhere"
    anchor = unquote(url.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return f"{address}: {target.name} has no #{anchor}"
    return ""


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python site/links.py FOLDER", file=sys.stderr)
        return 2
    found = problems(Path(sys.argv[1]))
    print(*found, sep="\n") if found else print("no problem found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
