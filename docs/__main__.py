"""Build the documentation: ``python -m docs [FOLDER]``, by default build/docs; FOLDER/html/index.html is its start."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from .generate import write


def loaded_from_elsewhere(page: str) -> list[str]:
    """What a page of HTML would load from the network."""
    tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page)
    return [tag for tag in tags if re.search(r"(?:src|href)=[\"'](?:https?:)?//", tag)]


def main(folder: Path) -> int:
    source, html = folder / "source", folder / "html"
    shutil.rmtree(source, ignore_errors=True)
    write(source)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going", "-n", "-c", str(Path(__file__).parent)]
    status = subprocess.call([*command, "-d", str(folder / "doctrees"), str(source), str(html)], cwd=Path(__file__).parent.parent)
    for path in sorted(html.rglob("*.html")):
        for tag in loaded_from_elsewhere(path.read_text()):
            print(f"{path}: loads from the network: {tag}", file=sys.stderr)
            status = 1
    if status == 0:
        print(html / "index.html")
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs").absolute()))
