"""The pages of the documentation as tests read them: their code blocks, the commands in those, their sections."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = (*(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")), *sorted(DOCS.glob("*.md")))

SHELLS = ("sh", "bash", "shell", "console")
LANGUAGES = (*SHELLS, "python", "yaml", "diff", "text", "")
"""Languages of blocks; others are directives of MyST, in braces."""

_BLOCK = re.compile(r"^( *)(`{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"# (\S+\.yml)\n")


class Block(NamedTuple):
    """A fenced block: its page, its language (or directive), its text without the indentation of the fence."""

    page: Path
    language: str
    text: str

    @property
    def name(self):
        """The file that a YAML block is meant to be: its first line, as `# name.yml`."""
        found = _NAME.match(self.text)
        return found[1] if found else None


def blocks(page, language=None):
    """The fenced blocks of a page, in order; those of one language where one is given."""
    text = page.read_text(encoding="utf-8")
    found = [Block(page, match[3].strip(), textwrap.dedent(match[4])) for match in _BLOCK.finditer(text)]
    return [block for block in found if language in (None, block.language)]


def prose(page):
    """The text of a page without its fenced blocks."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def commands(page, *, starting=""):
    """The command lines of the shell blocks of a page, continued lines joined, comments left out."""
    lines = []
    for block in (block for block in blocks(page) if block.language in SHELLS):
        for line in block.text.replace("\\\n", " ").splitlines():
            command = " ".join(line.partition(" #")[0].split())
            if command and not command.startswith("#"):
                lines.append(command)
    return [line for line in lines if line.startswith(starting)]


def slugs(page):
    """Anchors of the headings of a page, as GitHub and Sphinx (with MyST) make them."""
    found = []
    for title in re.findall(r"^#{1,6} +(.+?) *$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        again = sum(other == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", other) is not None for other in found)
        found.append(f"{slug}-{again}" if again else slug)
    return found
