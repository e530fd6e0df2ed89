"""The imports of the package, read from its code: storeys, what folders offer each other, and the drawing of it.

python tests/helpers/layout.py     writes the drawing in docs/architecture.md anew
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from paths import DOCS, ROOT

PACKAGE = ROOT / "opq"

STOREYS = (
    *("errors", "base", "plan", "constraints", "models", "sources", "demo", "coding", "allocation", "quantizing"),
    *(
        "file",
        "updates",
        "probing",
        "report",
        "compression",
        "training",
        "methods",
        "streaming",
        "export",
        "evaluation",
    ),
    *("hub", "api", "__init__", "cli", "__main__"),
)
"""From the ground up: a file imports only from its own folder and from storeys before it."""

PUBLIC_MODULES = ("constraints", "demo", "evaluation", "export", "hub", "methods", "report", "streaming")
BEGIN, END = "<!-- drawing: made by tests/helpers/layout.py -->", "<!-- end of the drawing -->"


@dataclasses.dataclass(frozen=True)
class Import:
    """One name that a file takes from another, e.g. `opq/api.py` line 3 `Plan` from `plan`."""

    path: Path
    line: int
    module: str
    """Dotted, below `opq`: `coding.entropy`; `__init__` is the package itself."""
    name: str | None
    """None where the module itself is imported."""
    late: bool
    """Whether it stands in a function or is for type checkers only."""

    @property
    def origin(self) -> str:
        """The importing module, dotted, below `opq`."""
        return dotted(self.path)

    @property
    def storeys(self) -> tuple[str, str]:
        """Storeys of the importing and of the imported module."""
        return self.origin.split(".")[0], self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.module} ({self.name or 'whole'})"


def dotted(path: Path) -> str:
    """`opq/coding/text.py` as `coding.text`, a folder's `__init__` as the folder, the package's as `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package."""
    return {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def imports() -> tuple[Import, ...]:
    """Every import of the package from itself."""
    return tuple(found for path in modules().values() for found in _of(path))


def _of(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text())
    early = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "opq"):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            base = (node.module or "")[4:]
            for alias in node.names:
                module = ".".join(filter(None, (base, alias.name)))
                whole = module in modules()
                yield Import(path, node.lineno, module if whole else base or "__init__",
                             None if whole else alias.name, id(node) not in early)  # fmt: skip
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "opq":
                    module = alias.name[4:] or "__init__"
                    yield Import(path, node.lineno, module, None, id(node) not in early)


def offered(folder: str) -> tuple[str, ...] | None:
    """What a folder's `__init__` names in `__all__`; None for a storey that is one file."""
    path = PACKAGE / folder / "__init__.py"
    if not path.exists():
        return None
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()


def first_line(module: str) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(modules()[module].read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")


def drawing() -> str:
    """The storeys as a table, the roof first: what each is for and which others it stands on."""
    rows = ["| storey | what it is for | stands on |", "|---|---|---|"]
    for storey in reversed(STOREYS):
        if storey not in modules():
            continue
        below = {target for i in imports() if (pair := i.storeys)[0] == storey and (target := pair[1]) != storey}
        names = " ".join(f"`{name}`" for name in STOREYS if name in below) or "nothing of the package"
        rows.append(f"| `{storey}` | {first_line(storey)} | {names} |")
    return "\n".join(rows)


def drawn() -> str:
    """The drawing that stands in docs/architecture.md."""
    text = (DOCS / "architecture.md").read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def cycles() -> list[tuple[str, ...]]:
    """Cycles of modules whose imports are made when they are loaded."""
    after: dict[str, set[str]] = {name: set() for name in modules()}
    for found in imports():
        if not found.late and found.module in after and found.module != found.origin:
            after[found.origin].add(found.module)
    state: dict[str, int] = {}
    rings: list[tuple[str, ...]] = []

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if state.get(name) == 1:
            rings.append((*trail[trail.index(name) :], name))
        if name in state:
            return
        state[name] = 1
        for other in sorted(after[name]):
            visit(other, (*trail, name))
        state[name] = 2

    for name in after:
        visit(name, ())
    return rings


if __name__ == "__main__":
    page = DOCS / "architecture.md"
    text = page.read_text()
    page.write_text(text[: text.index(BEGIN) + len(BEGIN)] + f"\n\n{drawing()}\n\n" + text[text.index(END) :])
