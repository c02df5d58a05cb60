"""The examples in README.md and docs/: which there are, and how those of one page are run.

A fenced `python` block below `<!-- run -->` is a whole program, and below `<!-- file: shop.py -->` a module that the
programs of the page can import. `python -m tests.pages PAGE` runs a page's programs, in a new folder each; those of one
section if that is named, as in `docs/how-to/metrics-and-traces.md#prometheus`.
"""

import os
import re
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^(?:<!-- (run|file: \S+\.py) -->\n+)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """One block of a page: what its mark says ("", "run" or "file: …"), its section, the line it begins on, and its code."""

    mark: str
    section: str  # as links name it; "" above the first one
    line: int
    code: str


def examples(page: Path) -> list[Example]:
    text = page.read_text()
    return [
        Example(
            found[1] or "",
            _section_at(text, found.start()),
            text.count("\n", 0, found.start(2)) + 1,
            found[2],
        )
        for found in _BLOCK.finditer(text)
    ]


def _section_at(text: str, position: int) -> str:
    titles = _SECTION.findall(text, 0, position)
    return titles[-1].lower().replace(" ", "-") if titles else ""


def run_page(page: Path, section: str = "") -> None:
    """Run the page's programs in this process; a traceback shows the lines of the page."""
    programs = [one for one in examples(page) if one.mark == "run" and section in ("", one.section)]
    if not programs:
        raise SystemExit(f"no program to run in {page}, section {section or 'any'}")
    for program in programs:
        run_program(page, program, files_of(page))


def run_program(page: Path, example: Example, files: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="outbox-docs-") as folder:
        program = Path(folder) / f"{page.stem}.md.py"
        program.write_text("\n" * (example.line - 1) + example.code)
        for name, code in files.items():
            (Path(folder) / name).write_text(code)
            sys.modules.pop(name.removesuffix(".py"), None)
        os.chdir(folder)
        sys.path.insert(0, folder)
        try:
            runpy.run_path(str(program), run_name="__main__")
        finally:
            sys.path.remove(folder)
            os.chdir(ROOT)


def files_of(page: Path) -> dict[str, str]:
    """The modules of a page, by file name."""
    return {
        example.mark.removeprefix("file: "): example.code
        for example in examples(page)
        if example.mark.startswith("file: ")
    }


def main(arguments: Sequence[str]) -> None:
    for argument in arguments:
        page, _, section = argument.partition("#")
        run_page(Path(page).resolve(), section)


if __name__ == "__main__":
    main(sys.argv[1:])
