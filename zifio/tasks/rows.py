"""Rows of a data set: from JSONL (also gzipped), a JSON list or parquet; in a file, a folder, or at the hub.

A file is read once in a process. What cannot be found is told with the command that fetches it.

Try it alone:

    python -c "from zifio.tasks.rows import *; print(find('gsm8k', 'data/gsm8k', None)['train'])"
"""

import gzip
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from zifio.config import ConfigError
from zifio.tasks.task import Split

_KINDS = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_WORDS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "held-out": ("test", "held-out", "held_out", "validation", "valid", "dev", "eval"),
}
_SHARD = re.compile(r"-\d+-of-\d+$")
_AT_HUB = re.compile(r"hub:([^/]+/[^/]+)/(.+)")


class Hub(NamedTuple):
    """A data set at the Hugging Face hub, and its files there: of the train split (or none), of the held-out one."""

    repository: str
    train: str | None
    held_out: str

    def command(self) -> str:
        """What fetches it, for whoever has a network elsewhere."""
        files = " ".join(filter(None, (self.train, self.held_out)))
        folder = self.repository.rpartition("/")[2].lower()
        return f"hf download {self.repository} {files} --repo-type dataset --local-dir {folder}"


def find(name: str, path: str, hub: Hub | None) -> dict[Split, list[Path]]:
    """The files of each split: a single file stands under "held-out" and there is no "train".

    `path` is a file, a folder, or `hub:OWNER/NAME/FILE`; where it is empty the set's own files are fetched from the
    hub, once. Raises ConfigError.
    """
    if not path:
        return _from_hub(name, hub)
    named = _AT_HUB.fullmatch(path)
    if named:
        return {"held-out": [_fetched(name, Hub(named[1], None, named[2]), named[2])]}
    place = Path(path).expanduser()
    if place.is_file():
        _check_kind(place, name)
        return {"held-out": [place]}
    if not place.is_dir():
        raise ConfigError(f"task {name}: path: wanted a file or a folder, came {path!r}: no such one. {_fetch(hub)}")
    files = sorted(file for file in place.rglob("*") if file.is_file() and _kind(file))
    found: dict[Split, list[Path]] = {s: _matching(files, words, name, place) for s, words in _WORDS.items()}
    if not found["held-out"] and len(files) == 1:
        return {"held-out": files}
    if not found["held-out"]:
        raise ConfigError(
            f"task {name}: path: wanted a file with `test` in its name in {place}, came "
            f"{', '.join(file.name for file in files[:8]) or 'no data file'}. Rename one, or give a file. {_fetch(hub)}"
        )
    return {split: those for split, those in found.items() if those}


@lru_cache(maxsize=16)
def read_rows(path: Path, name: str) -> tuple[dict[str, Any], ...]:
    """The rows of a file, in order. Raises ConfigError with the line where one is no JSON object, or for no rows."""
    try:
        kind = _kind(path)
        rows = _parquet(path, name) if kind == ".parquet" else _json(path, name, kind)
    except OSError as error:
        raise ConfigError(f"task {name}: {path}: wanted a readable file, came: {error}. Fetch it again.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"task {name}: {path}: wanted UTF-8 text, came: {error.reason}. Save it as UTF-8.") from None
    if not rows:
        raise ConfigError(f"task {name}: {path}: wanted rows, came none. Fetch the file again.")
    return tuple(rows)


def value(row: dict[str, Any], keys: Sequence[str], where: str) -> Any:
    """The first of these columns that the row has. Raises ConfigError where it has none of them."""
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    raise ConfigError(
        f"{where}: wanted a column {' or '.join(map(repr, keys))}, came {', '.join(map(repr, row)) or 'none'}. "
        "Rename a column."
    )


def text(row: dict[str, Any], keys: Sequence[str], where: str) -> str:
    """As `value`, as text: whole floats lose their `.0`, as data sets write integers."""
    found = value(row, keys, where)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if isinstance(found, str | int | float) and not isinstance(found, bool) and str(found).strip():
        return str(found).strip()
    raise ConfigError(f"{where}: {keys[0]}: wanted text, came {found!r}"[:300] + ". Mend the row.")


def _kind(path: Path) -> str:
    return next((kind for kind in _KINDS if path.name.lower().endswith(kind)), "")


def _check_kind(path: Path, name: str) -> None:
    if not _kind(path):
        raise ConfigError(f"task {name}: path: wanted {', '.join(_KINDS)}, came {path.name!r}. Convert the file.")


def _matching(files: Sequence[Path], words: Sequence[str], name: str, folder: Path) -> list[Path]:
    """The files, all shards of one, whose name has the first word that any has."""
    for word in words:
        pattern = re.compile(rf"(?<![a-z]){re.escape(word)}(?![a-z])")
        found = [file for file in files if pattern.search(file.name.lower())]
        if len({(file.parent, _SHARD.sub("", file.name.partition(".")[0])) for file in found}) > 1:
            raise ConfigError(
                f"task {name}: path: wanted one file with `{word}` in its name in {folder}, came "
                f"{', '.join(str(file.relative_to(folder)) for file in found[:6])}. Give a folder that has one."
            )
        if found:
            return found
    return []


def _json(path: Path, name: str, kind: str) -> list[dict[str, Any]]:
    content = path.read_bytes()
    lines = (gzip.decompress(content) if kind == ".jsonl.gz" else content).decode()
    if kind == ".json":
        lines = "\n".join(json.dumps(row) for row in _listed(lines, path, name))
    rows = []
    for number, line in enumerate(lines.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            row = error
        if not isinstance(row, dict):
            raise ConfigError(
                f"task {name}: {path}: line {number}: wanted a JSON object, came {line[:80]!r}. Mend the line."
            )
        rows.append(row)
    return rows


def _listed(content: str, path: Path, name: str) -> list[Any]:
    try:
        rows = json.loads(content)
    except ValueError:
        rows = None
    if not isinstance(rows, list):
        raise ConfigError(f"task {name}: {path}: wanted a JSON list of objects, came none. Write one object a line.")
    return rows


def _parquet(path: Path, name: str) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        raise ConfigError(f"task {name}: {path}: wanted a parquet file, came: {error}. Fetch it again.") from None


def _fetch(hub: Hub | None) -> str:
    return f"To fetch it: {hub.command()}" if hub else "Check the path."


def _from_hub(name: str, hub: Hub | None) -> dict[Split, list[Path]]:
    if hub is None:
        raise ConfigError(f"task {name}: path: wanted a file or a folder, came none. Give one: path = ...")
    found: dict[Split, list[Path]] = {"held-out": [_fetched(name, hub, hub.held_out)]}
    if hub.train:
        found["train"] = [_fetched(name, hub, hub.train)]
    return found


def _fetched(name: str, hub: Hub, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  # of httpx

    try:
        return Path(hf_hub_download(hub.repository, file, repo_type="dataset"))
    except (HTTPError, OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0][:200]
        raise ConfigError(
            f"task {name}: wanted {file} of {hub.repository} from the Hugging Face hub or its cache, came: {why}. "
            f"Where there is a network: {hub.command()}; then give the folder as path."
        ) from None
