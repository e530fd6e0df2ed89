"""The description of the package on an index: README, whose links into the repository would lead nowhere there."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")
"""A link or a picture whose address is relative."""


def described(readme: str, repository: str, tag: str) -> str:
    """README with whole addresses: of files of a tag in the repository; where none is known links are plain words.

    Args:
        repository: its address, of which `/blob/TAG/PATH` shows a file and `/raw/TAG/PATH` gives it; or nothing.
    """

    def whole(link: re.Match[str]) -> str:
        picture, text, path = link.groups()
        if not repository:
            return "" if picture else text
        return f"{picture}[{text}]({repository.rstrip('/')}/{'raw' if picture else 'blob'}/{tag}/{path})"

    return LINK.sub(whole, readme)


if __name__ == "__main__":
    project, package = (HERE / "pyproject.toml").read_text(), (HERE / "opq" / "__init__.py").read_text()
    address = re.search(r'^Repository = "(.+)"', project, re.MULTILINE)
    version = re.search(r'^__version__ = "(.+)"', package, re.MULTILINE)
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    text = described(readme, address[1] if address else "", f"v{version[1]}" if version else "")
    setup(long_description=text, long_description_content_type="text/markdown")
