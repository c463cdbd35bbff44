"""What the site has besides the pages under docs/: included files, pictures, tables.

A page stands in docs/ with links that are right in the repository, so that it can be read there
too. Here links that leave docs/ become pages of the site where it includes their file, and
addresses in the repository where it doesn't. A line <!-- made: NAME --> is replaced by what
`made.NAME` gives.
"""

import os
import re
import sys
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

HERE = Path(__file__).parent
DOCS, ROOT = HERE.parent, HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import made  # noqa: E402

RESULTS = ROOT / "experiments" / "results"
# Files of the repository that are pages or pictures of the site -> their place there.
INCLUDED = {
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "experiments" / "launch" / "README.md": "pods.md",
    **{path: f"results/{path.name}" for path in sorted(RESULTS.glob("*.md"))},
    **{path: f"results/{path.name}" for path in sorted(RESULTS.glob("*.png"))},
}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")  # a link's or a picture's target
MADE = re.compile(r"^<!-- made: (\w+) -->$", re.MULTILINE)


def on_files(files, config):
    """Adds the included files, and the pictures that are drawn."""
    for source, place in INCLUDED.items():
        if source.suffix == ".md":
            files.append(File.generated(config, place, content=source.read_text(encoding="utf-8")))
        else:
            files.append(File.generated(config, place, content=source.read_bytes()))
    for name, content in made.pictures().items():
        files.append(File.generated(config, f"pictures/{name}", content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Puts in what is made, and turns links that leave the site."""
    place = page.file.src_uri
    source = next((path for path, at in INCLUDED.items() if at == place), DOCS / place)
    up = "../" * place.count("/")
    markdown = MADE.sub(lambda found: getattr(made, found[1])(up), markdown)

    def turn(text):
        return LINK.sub(lambda link: turned(link, source, place, config), text)

    return outside_code(turn, markdown)


def outside_code(change, markdown):
    """Applies `change` to what is not in fences."""
    parts = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def turned(link, source, place, config):
    """The link of a page from `source`, which is at `place` in the site."""
    target, _, anchor = link[2].partition("#")
    if not target or ":" in target:
        return link[0]
    if source.is_relative_to(DOCS) and (target.startswith("pictures/") or "/pictures/" in target):
        return link[0]
    path = Path(os.path.normpath(source.parent / target))
    if not path.exists() and source.is_relative_to(DOCS):
        return link[0]  # of a page that is made: MkDocs checks it
    if not path.exists():
        raise PluginError(f"{source.relative_to(ROOT)} links to {target}, which isn't there")
    there = INCLUDED.get(path)
    if there is None and path.is_relative_to(DOCS):
        there = path.relative_to(DOCS).as_posix()
    if there is None:
        kind = "tree" if path.is_dir() else "blob"
        new = f"{config.repo_url}/{kind}/main/{path.relative_to(ROOT).as_posix()}"
    else:
        new = os.path.relpath(there, os.path.dirname(place) or ".")
    return f"{link[1]}{new}{'#' + anchor if anchor else ''}{link[3]}"
