"""`tessera components`: what a recipe can be made of, by kind, from the first line of each component's file.

Nothing is imported to find this out. `docs/components.md` is this as a page."""

from __future__ import annotations

import ast
from pathlib import Path

from flows.terminal import console

_ROOT = Path(__file__).resolve().parent.parent
PAGE_HEAD = """# Components

Made by `tessera components --markdown > docs/components.md`; a test holds it against the code. Each name is a `type:` in a
recipe, its settings and their defaults are in the constructor of its file, and `tessera schema` gives them to editors.
"""


def kinds() -> dict[str, str]:
    """Name of each kind -> its package, from `family` in components/interfaces.py, in the order of that file."""
    found: dict[str, str] = {}
    tree = ast.parse((_ROOT / "components" / "interfaces.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and getattr(item.target, "id", "") == "family":
                    assert isinstance(item.value, ast.Constant)
                    found[node.name] = str(item.value.value)
    return found


def listed(package: str) -> list[tuple[str, str]]:
    """(name, first line of what its file says) of the components in a package."""
    folder = _ROOT.joinpath(*package.split("."))
    helpers: tuple[str, ...] = ()
    for node in ast.parse((folder / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "HELPERS":
            helpers = ast.literal_eval(node.value)
    found = []
    for path in sorted(folder.glob("*.py")):
        if not path.stem.startswith("_") and path.stem not in helpers:
            doc = ast.get_docstring(ast.parse(path.read_text())) or ""
            found.append((path.stem, _sentence(doc)))
    return found


def show(kind: str, markdown: bool) -> None:
    """All kinds, or one; raises ValueError with the nearest name."""
    from components.registry import nearest

    known = kinds()
    if kind and kind not in known:
        raise UnknownKind(
            f"no kind of component is called '{kind}'{nearest(kind, list(known))} (there are: {', '.join(known)})"
        )
    chosen = {kind: known[kind]} if kind else known
    if markdown:
        print(page(), end="")
        return
    for name, package in chosen.items():
        console.print(f"[bold]{name}[/bold]")
        for component, says in listed(package):
            console.print(f"  {component:24} {says}", highlight=False, soft_wrap=True)


class UnknownKind(ValueError):
    """A kind of component that there is not."""

    user_error = True


def page() -> str:
    """docs/components.md"""
    parts = [PAGE_HEAD]
    for name, package in kinds().items():
        rows = "".join(f"| `{component}` | {says} |\n" for component, says in listed(package))
        parts.append(f"## {name}\n\n`{package.replace('.', '/')}/`\n\n| type | |\n|---|---|\n{rows}")
    return "\n".join(parts)


def _sentence(doc: str) -> str:
    """The first sentence, on one line."""
    first = " ".join(doc.split("\n\n")[0].split())
    ends = [
        i
        for i, c in enumerate(first)
        if c == "." and (i + 1 == len(first) or first[i + 1 : i + 3].strip()[:1].isupper())
    ]
    return (first[: ends[0]] if ends else first).replace("|", "/")
