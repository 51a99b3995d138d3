"""`zifio label DB`: the labelling desk. Without an option it opens the page; every option does one thing and ends.

zifio label desk.db --import items.jsonl
zifio label desk.db                                  # http://127.0.0.1:8017
zifio label desk.db wanted=2 queue=convincing        # the desk's rules
zifio label desk.db --add-annotator ann
zifio label desk.db --report
zifio label desk.db --export prm800k --out labels.jsonl
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from zifio.config import ConfigError, build, override
from zifio.label.desk import Desk
from zifio.label.settings import Settings
from zifio.label.store import Store
from zifio.log import say
from zifio.loopback import is_loopback, listen, serve_until_stopped

PORT = 8017


class Done(dict[str, Any]):
    """What was done, and how a person reads it."""

    def __init__(self, text: str, **values: Any) -> None:
        super().__init__(values)
        self._text = text

    def __str__(self) -> str:
        return self._text


def label(
    path: str,
    overrides: Sequence[str] = (),
    import_path: Path | None = None,
    prelabels: bool = False,
    scores: Path | None = None,
    export_format: str | None = None,
    every: bool = False,
    first: int | None = None,
    out: Path | None = None,
    add_annotator: str | None = None,
    adjudicator: bool = False,
    new_token: str | None = None,
    remove_annotator: str | None = None,
    report: bool = False,
    rebuild: bool = False,
    host: str = "127.0.0.1",
    port: int = PORT,
    as_json: bool = False,
) -> Any:
    """Do the one thing that was asked for, or open the page. What belongs on stdout comes back. Raises ConfigError."""
    does: dict[str, tuple[Any, Callable[[Desk], Any]]] = {
        "key=value": (overrides, lambda desk: _set(desk, overrides)),
        "--import": (import_path, lambda desk: _import(desk, import_path or Path(), prelabels)),
        "--scores": (scores, lambda desk: _scores(desk, scores or Path())),
        "--export": (export_format, lambda desk: _export(desk, export_format or "", out, every, first)),
        "--add-annotator": (add_annotator, lambda desk: _account(desk, add_annotator or "", adjudicator)),
        "--new-token": (new_token, lambda desk: _link(new_token or "", desk.new_token(new_token or ""))),
        "--remove-annotator": (remove_annotator, lambda desk: _remove(desk, remove_annotator or "")),
        "--report": (report, lambda desk: _report(desk)),
        "--rebuild": (rebuild, lambda desk: _rebuild(desk)),
    }
    asked = [name for name, (value, _) in does.items() if value]
    if len(asked) > 1:
        raise ConfigError(
            f"zifio label: wanted one thing at a time, came {' and '.join(asked)}. Give one after the other."
        )
    if (
        asked
        and asked[0] in ("--scores", "--export", "--report", "--rebuild")
        and "://" not in path
        and not Path(path).exists()
    ):
        raise ConfigError(f"{path}: wanted a desk, came none. Make one: zifio label {path} --import items.jsonl")
    with closing(Store(path)) as store:
        return does[asked[0]][1](Desk(store)) if asked else serve(Desk(store), host, port)


def _set(desk: Desk, overrides: Sequence[str]) -> Done:
    with desk.store.write() as connection:
        before = desk.store.settings(connection)
        after = build(Settings, override(before.model_dump(mode="json"), overrides), "command line")
        if after != before:
            desk.store.append(connection, "settings", "desk", after.model_dump(mode="json"))
    values = after.model_dump(mode="json")
    return Done("  ".join(f"{key}={value}" for key, value in values.items()), **values)


def _import(desk: Desk, path: Path, prelabels: bool) -> Done:
    from zifio.label.imports import import_file

    done = import_file(desk, path, prelabels)
    unclear = f", {done['unclear']} labels left out: they do not say which step is wrong" if done["unclear"] else ""
    silent = f", {done['silent']} replies left out: they say nothing" if done["silent"] else ""
    return Done(
        f"{done['lines']} lines: {done['items']} new items, {done['labels']} new labels{unclear}{silent}", **done
    )


def _scores(desk: Desk, path: Path) -> Done:
    from zifio.label.scores import import_scores

    done = import_scores(desk, path)
    return Done(f"{done['items']} items have new scores", **done)


def _export(desk: Desk, format: str, out: Path | None, every: bool, first: int | None) -> Done:
    from zifio.label.card import card_place, write_card
    from zifio.label.exports import export

    if out is None:
        raise ConfigError(
            f"--export {format}: wanted --out FILE to write to, came none. For example: --out labels.jsonl"
        )
    if format == "parquet":
        card_place(out)  # before anything is written
    done = export(desk.store, format, out, every, first)
    if format == "parquet":
        done["card"] = str(write_card(desk, out, done["rows"]))
    left = f"; {done['left_out']} labels have no place in this format" if done["left_out"] else ""
    return Done(f"{done['rows']} rows: {out}{left}", **done)


def _account(desk: Desk, name: str, adjudicates: bool) -> Done:
    return _link(name.strip(), desk.add_annotator(name, adjudicates))


def _link(name: str, token: str) -> Done:
    text = f"{name}'s token, shown this once: {token}\ntheir link: http://127.0.0.1:{PORT}/#token={token}"
    return Done(text, name=name, token=token)


def _remove(desk: Desk, name: str) -> Done:
    desk.remove_annotator(name)
    return Done(f"{name} can no longer log in; their labels stay", name=name)


def _report(desk: Desk) -> Any:
    from zifio.label.report import report

    return report(desk.store)


def _rebuild(desk: Desk) -> Done:
    desk.store.rebuild()
    return Done("the views are what the log says", rebuilt=True)


def serve(desk: Desk, host: str, port: int) -> None:
    """Open the page until Ctrl-C. Raises ConfigError where the port is taken, or anybody could come in."""
    from zifio.label.app import make_app

    alone = is_loopback(host)
    with desk.store.read() as connection:
        accounts, has_items = desk.has_accounts(connection), desk.has_items(connection)
    if not alone and not accounts:
        raise ConfigError(
            f"--host {host}: wanted accounts before others can reach the desk, came none. Add one: zifio label "
            f"{desk.store.where} --add-annotator NAME"
        )
    listening, address = listen(host, port)
    say(f"desk: {address}" + ("/#token=TOKEN, with each one's token" if accounts else ""))
    if not has_items:
        say(f"There is nothing to label yet: zifio label {desk.store.where} --import items.jsonl")
    if not alone:
        say("The connection is not encrypted. Put a server with TLS before it where the network is not yours.")
    serve_until_stopped(make_app(desk, alone), listening)
