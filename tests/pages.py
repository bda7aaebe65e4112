"""README.md and the pages of docs/, and the code blocks in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md']
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('docs/*.md'))


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding='utf-8')


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Name (or ''), language and content of each."""
    pattern = r'(?m)^(?:<!-- tested: ([\w-]+) -->\n)?```(\w+)\n((?:.*\n)*?)```$'
    return re.findall(pattern, read(page))


def block(page: str, name: str) -> str:
    (code,) = (code for found, _, code in blocks(page) if found == name)
    return code
