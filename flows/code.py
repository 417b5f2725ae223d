"""The code that a stage's result depends on, as one hash a stage.

Hashed are syntax trees, so that comments, docstrings and formatting change nothing: what `body` in `flows/<stage>.py`
reaches in its own file, the files of the components that the stage's recipe sections name or whose trained weights it
loads, and everything these import inside `components` and from the helper files in `flows`. Left out are the vocabulary
(`interfaces`, `registry`), whose changes show in the files that use it, and everything that decides where and when but
not what: `infra`, the Prefect flow below a body, and the plumbing of `flows`. Nothing is imported to find this out.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from flows import initial, runs
from infra.storage import write_bytes_atomic

KEPT = Path(".tessera", "cache", "resolved")  # in a project: what is kept of recipes and code between processes
_ROOT = Path(__file__).resolve().parent.parent
_VOCABULARY = {"components", "components.interfaces", "components.registry", "components.yamlio"}
#: files of `flows` that a body's result depends on; the others only carry it
_HELPERS = {"flows.data", "flows.networks", "flows.pictures", "flows.serving"}


def of_recipe(project: Path, recipe: dict[str, Any], stages: list[str]) -> dict[str, str]:
    """The `code` section of a resolved recipe."""
    return stage_hashes(project, runs.sections_read(project), recipe, stages, runs.sections_loaded(project, recipe))


def stage_hashes(
    project: Path,
    sections: dict[str, list[str]],
    recipe: dict[str, Any],
    stages: list[str],
    loaded: dict[str, list[str]] | None = None,
) -> dict[str, str]:
    """{stage: "<hash of its code>-<hash of its sections>"}; `sections` are those each stage reads, `loaded` those whose
    trained components it uses, `recipe` is resolved.

    The second half says nothing new, but DVC's run cache leaves every key called `size` or `nfiles` out of its own hash:
    without it `dvc repro` would take the data of `image: {size: 16}` for a recipe that says 32."""
    found = {}
    known = _Known(project)
    for stage in stages:
        read = {name: recipe.get(name) for name in sections[stage] if not name.startswith("code.")}
        used = [recipe.get(name) for name in (loaded or {}).get(stage, [])]
        named = {name for section in [*read.values(), *used] for name in _types(section)}
        roots = [file for name in sorted(named) for file in _component_files(project, name)]
        if any(section.get("init") for path, section in initial.trained(recipe) if path[0] == stage):
            roots.append("components.initial")
        parts = [known.body(f"flows.{stage}").hash, *_closure_hashes(known, f"flows.{stage}", roots)]
        parts += [_suite_hash(s["expectations"]) for s in read.values() if isinstance(s, dict) and "expectations" in s]
        content = json.dumps(read, sort_keys=True)
        halves = (hashlib.sha256(text.encode()).hexdigest() for text in ("".join(parts), content))
        found[stage] = "-".join(half[:16] for half in halves)
    known.save()
    return found


def _suite_hash(name: str) -> str:
    """A suite of expectations is data, but decides like code."""
    path = _ROOT / "components" / "data" / "expectations" / f"{name}.yaml"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def source_hash(project: Path) -> str:
    """Of every file that could matter to any recipe: part of the key under which resolved recipes are kept."""
    folders = [_ROOT / "components", _ROOT / "flows"]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    files += sorted((_ROOT / "components").rglob("*.yaml"))
    if project != _ROOT:  # its modules and packages, without a walk through its data
        packages = sorted(path.parent for path in project.glob("*/__init__.py"))
        files += sorted(project.glob("*.py")) + [path for folder in packages for path in sorted(folder.rglob("*.py"))]
    marks = [f"{path}:{path.stat().st_mtime_ns}:{path.stat().st_size}" for path in files]
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()


def _types(value: Any) -> Iterator[str]:
    """Every `type:` in a section, at any depth."""
    if isinstance(value, dict):
        if isinstance(value.get("type"), str):
            yield value["type"]
        for inner in value.values():
            yield from _types(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _types(inner)


def _component_files(project: Path, name: str) -> list[str]:
    """The modules behind a component's name: `module:Class` of the project, or every built-in file so called."""
    if ":" in name:
        return [name.partition(":")[0]]
    found = sorted((_ROOT / "components").rglob(f"{name}.py"))
    return [".".join(path.relative_to(_ROOT).with_suffix("").parts) for path in found]


def _closure_hashes(known: _Known, start: str, roots: Iterable[str]) -> list[str]:
    seen: dict[str, str] = {}
    waiting = [*roots, *known.body(start).imports]
    while waiting:
        module = waiting.pop()
        if module in seen or not _counts(module) or (file := known.file(module)) is None:
            continue
        seen[module] = file.hash
        waiting += file.imports
    return [f"{module}={seen[module]};" for module in sorted(seen)]


def _counts(module: str) -> bool:
    package = module.partition(".")[0]
    if package == "components":
        return module not in _VOCABULARY
    if package == "flows":
        return module in _HELPERS
    return package != "infra"


def _file(module: str, project: Path) -> Path | None:
    """The file of a module of the product or the project; None for installed packages."""
    for root in dict.fromkeys([_ROOT, project]):
        base = root.joinpath(*module.split("."))
        if base.with_suffix(".py").is_file():
            return base.with_suffix(".py")
        if (base / "__init__.py").is_file():
            return base / "__init__.py"
    return None


class _Code(NamedTuple):
    """What matters of some code: its hash, and the modules it imports."""

    hash: str
    imports: tuple[str, ...]


_NONE = _Code("", ())


class _Known:
    """The code of each module. Kept between processes by size and time of change: to parse all takes most of a second."""

    def __init__(self, project: Path) -> None:
        self.project = project
        marks = [*sys.version_info[:3], *_mark(Path(__file__))]
        name = "-".join(map(str, marks))
        self.path = project / KEPT / f".code-{name}.json"
        try:
            self.kept: dict[str, Any] = json.loads(self.path.read_text())
        except (OSError, json.JSONDecodeError):
            self.kept = {}
        self.fresh = False

    def save(self) -> None:
        if self.fresh:
            write_bytes_atomic(self.path, json.dumps(self.kept).encode())
            self.fresh = False

    def file(self, module: str) -> _Code | None:
        """All of a module; None for installed packages."""
        path = _file(module, self.project)
        return self._found(path, module, "all", lambda tree: [tree]) if path else None

    def body(self, module: str) -> _Code:
        """What `body` reaches in the file of a stage."""
        path = _file(module, self.project)
        return self._found(path, module, "body", _reached) if path else _NONE

    def _found(self, path: Path, module: str, what: str, parts: Callable[[ast.Module], Sequence[ast.AST]]) -> _Code:
        key, mark = f"{what} {module} {path}", list(_mark(path))
        entry = self.kept.get(key)
        if not entry or entry["mark"] != mark:
            nodes = parts(ast.parse(path.read_text(encoding="utf-8"), str(path)))
            imports = _imports(nodes, module, path)
            digest = hashlib.sha256("".join(ast.dump(_bare(node)) for node in nodes).encode()).hexdigest()
            entry = self.kept[key] = {"mark": mark, "hash": digest, "imports": imports}
            self.fresh = True
        return _Code(entry["hash"], tuple(entry["imports"]))


def _mark(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _imports(nodes: Sequence[ast.AST], module: str, path: Path) -> list[str]:
    """Module names that some code imports, also inside functions; `from a import b` gives both `a` and `a.b`."""
    found: list[str] = []
    for node in (inner for part in nodes for inner in ast.walk(part)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                base = importlib.util.resolve_name("." * node.level + base, package)
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return found


def _reached(tree: ast.Module) -> list[ast.stmt]:
    """The top-level statements that `body` reaches by name, and the imports of those names."""
    named: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if not any(isinstance(part, ast.Name) and part.id == "flow" for part in _decorators(node)):
                named[node.name] = node  # a flow may be called like a variable of the body
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    named[target.id] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                named[alias.asname or alias.name.split(".")[0]] = node
    reached: dict[str, ast.stmt] = {}
    waiting = ["body"]
    while waiting:
        name = waiting.pop()
        if name in named and name not in reached:
            reached[name] = named[name]
            waiting += [node.id for node in ast.walk(named[name]) if isinstance(node, ast.Name)]
    return [node for node in tree.body if any(node is found for found in reached.values())]


def _decorators(node: ast.FunctionDef | ast.ClassDef) -> Iterator[ast.AST]:
    return (part for decorator in node.decorator_list for part in ast.walk(decorator))


def _bare(node: ast.AST) -> ast.AST:
    """A copy of the tree without docstrings (comments and layout are not in it anyway)."""
    node = deepcopy(node)
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        if (
            isinstance(inner, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            and isinstance(body, list)
            and body
        ):
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                inner.body = body[1:] or [ast.Pass()]
    return node
