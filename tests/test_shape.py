"""The shape of the code: floors, budgets, names, and what may be imported without torch (docs/design.md).

Each law collects every violation before it fails, one line each, with file and line.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "zifio"
FLOORS = {
    0: ("config", "seed", "log", "gguf", "wire", "loopback", "stats", "pictures", "idx"),
    0.5: ("kernels",),
    1: ("models", "data", "tasks", "parallel"),
    1.5: ("record",),
    2: ("checkpoint", "engine", "plan", "adapters", "label", "doctor", "sink"),
    3: ("train", "evaluate", "serve", "board"),
    4: ("cli", "verbs", "recipe", "chat", "convert", "exam", "forecast", "easel", "gather", "lab"),
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
OUTSIDE = ("lab", "bench", "tests", "recipes")
TORCH_FREE_ROOMS = (
    "config",
    "seed",
    "log",
    "gguf",
    "wire",
    "loopback",
    "stats",
    "pictures",
    "idx",
    "tasks",
    "record",
    "label",
    "doctor",
    "board",
    "sink",
    "plan",
    "adapters",
    "cli",
    "verbs",
    "data",
    "recipe",
    "chat",
    "convert",
    "exam",
    "easel",
    "gather",
    "lab",
)
TORCH_FREE_FILES = (
    "models/config.py", "models/families.py", "models/janus_config.py", "models/classifier_config.py",
    "models/count.py", "models/hub.py", "models/presets.py", "train/config.py", "train/feedback.py",
    "train/picture_config.py",
    "evaluate/config.py", "evaluate/endpoint.py", "evaluate/examine.py", "evaluate/recorded.py", "evaluate/claim.py",
    "evaluate/contamination.py", "engine/config.py", "engine/pages.py", "engine/memory.py", "engine/rows.py",
    "engine/scheduler.py", "engine/stops.py", "engine/guide.py", "engine/marks.py", "engine/request.py",
    "serve/app.py", "serve/verb.py", "serve/model.py", "serve/child.py",
    "forecast/verb.py", "forecast/subject.py", "forecast/tables.py", "forecast/recipe.py", "forecast/against.py",
    "forecast/claim.py",
)  # fmt: skip
FOREIGN = {
    "adapters/gym.py": "gymnasium", "adapters/openenv.py": "openenv",
    "adapters/verifiers.py": "verifiers", "adapters/verifiers_tools.py": "verifiers",
    "sink/tensorboard.py": "tensorboard", "serve/vllm_engine.py": "vllm", "serve/vllm_steering.py": "vllm",
    "gather.py": "sklearn",
}  # fmt: skip
"""Whose libraries are not ours: an adapter imports the one that it adapts to, and nobody imports the adapter."""
IMPORTED_AS = {"pil": "pillow"}
"""Names of modules that are not their project's."""
LONGEST_ADAPTER = 100
BANNED_NAMES = {"util", "utils", "helper", "helpers", "common", "types", "constants", "misc"}
LONGEST_FILE, LONGEST_FUNCTION = 600, 80

Function = ast.FunctionDef | ast.AsyncFunctionDef
SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_bytes()) for path in SOURCES}


def room_of(path: Path) -> str:
    """The room a file of the package belongs to: the first name under zifio/."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    """zifio/models/moe.py -> zifio.models.moe"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, also those inside functions; relative ones start with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = [f"zifio.{alias.name}" for alias in node.names] if base == "zifio" else [base]
            yield from ((node.lineno, name) for name in names)


def public(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Functions and classes without an underscore, and their methods of more than one statement."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                methods = (part for part in node.body if isinstance(part, Function))
                yield from (one for one in methods if not one.name.startswith("_") and len(one.body) > 1)


def fail_if(violations: list[str]) -> None:
    """Fail with one violation a line."""
    if violations:
        pytest.fail("\n" + "\n".join(violations), pytrace=False)


def at(path: Path, line: int = 1) -> str:
    """path:line as an editor opens it."""
    return f"{path.relative_to(ROOT)}:{line}"


def test_every_room_has_a_floor():
    rooms = {room_of(path): path for path in SOURCES if path.parent != PACKAGE or path.name != "__init__.py"}
    fail_if([f"{at(path)}: no floor for {room}" for room, path in rooms.items() if room not in FLOOR_OF])


def test_imports_go_down():
    """A room sees itself and lower floors; floor 0 also sees its own, and floor 4 wires everything."""
    wrong = []
    for path, tree in TREES.items():
        room = room_of(path)
        for line, name in imports(tree):
            top, _, rest = name.partition(".")
            if not top:
                wrong.append(f"{at(path, line)}: write the whole name of a module, not {name}")
            elif top in OUTSIDE:
                wrong.append(f"{at(path, line)}: the package imports nothing from {top}/")
            if top != "zifio" or not rest:
                continue
            other = rest.partition(".")[0]
            mine, theirs = FLOOR_OF.get(room, 0), FLOOR_OF.get(other, 0)
            if room != other and theirs >= mine and mine not in (0, 4):
                wrong.append(f"{at(path, line)}: {room} (floor {mine}) may not see {other} (floor {theirs})")
            elif mine == 0 and theirs > 0:
                wrong.append(f"{at(path, line)}: {room} is on floor 0 and may not see {other}")
    fail_if(wrong)


def test_only_declared_libraries():
    """The package runs on the standard library and the dependencies of pyproject.toml alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", need)[0].replace("-", "_").lower() for need in project["dependencies"]}
    declared |= {name for name, project in IMPORTED_AS.items() if project in declared}
    known = declared | set(sys.stdlib_module_names) | {"zifio", "pydantic_core", ""}
    fail_if(
        [
            f"{at(path, line)}: {name} is not among the dependencies"
            for path, tree in TREES.items()
            for line, name in imports(tree)
            if name.partition(".")[0].lower() not in known | {FOREIGN.get(path.relative_to(PACKAGE).as_posix(), "")}
        ]
    )


def test_budgets():
    folders = [ROOT / name for name in ("zifio", "lab", "bench", "tests")]
    wrong = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        if any(part.startswith(".") for part in path.relative_to(ROOT).parts):
            continue  # what tools keep there
        text = path.read_text()
        lines = text.count("\n")
        if lines > LONGEST_FILE:
            wrong.append(f"{at(path)}: {lines} lines, at most {LONGEST_FILE}")
        if PACKAGE / "adapters" in path.parents and lines > LONGEST_ADAPTER:
            wrong.append(f"{at(path)}: {lines} lines, an adapter has at most {LONGEST_ADAPTER}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, Function) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    wrong.append(f"{at(path, node.lineno)}: {node.name} has {length} lines")
    fail_if(wrong)


def test_names():
    wrong = [
        f"{at(path)}: a name that says nothing" for path in SOURCES if BANNED_NAMES & {*module_of(path).split(".")}
    ]
    wrong += [f"{at(path)}: keep it empty" for path in SOURCES if path.name == "__init__.py" and path.stat().st_size]
    fail_if(wrong)


def test_docstrings():
    wrong = [
        f"{at(path)}: say what this module is and how to try it"
        for path, tree in TREES.items()
        if path.name != "__init__.py" and not ast.get_docstring(tree)
    ]
    wrong += [
        f"{at(path, node.lineno)}: {node.name} has no docstring"
        for path, tree in TREES.items()
        for node in public(tree)
        if not ast.get_docstring(node) and node.name != "forward"
    ]
    fail_if(wrong)


def test_types():
    """Every function says what it takes and gives."""
    wrong = []
    for path, tree in TREES.items():
        for node in (node for node in ast.walk(tree) if isinstance(node, Function)):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            given += [extra for extra in (node.args.vararg, node.args.kwarg) if extra is not None]
            bare = [arg.arg for arg in given if arg.annotation is None and arg.arg not in ("self", "cls")]
            if bare or node.returns is None:
                wrong.append(f"{at(path, node.lineno)}: {node.name} lacks types for {[*bare, 'result'][0]}")
    fail_if(wrong)


def test_banned_calls():
    """No print: zifio.log.say. No hash: it is salted per process, use zifio.seed."""
    fail_if(
        [
            f"{at(path, node.lineno)}: {node.func.id}() is banned"
            for path, tree in TREES.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "hash")
        ]
    )


def test_torch_free():
    """Help, plans and labels must not wait for torch: importing these modules does not load it."""
    free = [
        module_of(path)
        for path in SOURCES
        if room_of(path) in TORCH_FREE_ROOMS or path.relative_to(PACKAGE).as_posix() in TORCH_FREE_FILES
        if path.relative_to(PACKAGE).as_posix() not in FOREIGN  # tested in environments that have no torch
    ]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(f'{name} imports torch')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *free], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_test_files_have_names_of_their_own():
    """pytest knows a file without a package around it by its name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len({*names}), sorted(name for name in {*names} if names.count(name) > 1)


def test_no_folder_of_ours():
    """No committed text names a folder of one developer's machine."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    personal = re.compile(r"(?<![\w.])/(home|Users|root|work|farm)/\w")
    wrong = []
    for path in (ROOT / name for name in listed.stdout.split("\0") if name):
        if path.suffix in (".png", ".safetensors") or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            found = personal.search(line)
            if found and len(line) < 2000:
                wrong.append(f"{at(path, number)}: {found.group()}")
    fail_if(wrong)
