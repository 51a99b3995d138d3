"""Files into the desk: our own items, replies of `zifio eval` and `zifio sample`, PRM800K, TRL's formats. Streamed.

Every line is an item, and with some formats a label of it too. The same file twice changes nothing; a run that was
stopped is begun again. What cannot be read is told with its line, and nothing of that part is written.

Try it alone: `zifio label desk.db --import items.jsonl`
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, get_args

from sqlalchemy import Connection

from zifio.config import ConfigError, build
from zifio.data.sources import read_object
from zifio.label.desk import LONGEST_MS, Desk, Phase
from zifio.label.item import Item, Judgement, content_id, fault, stance
from zifio.label.store import Conflict
from zifio.log import Progress
from zifio.tasks.form import THINK, THOUGHT
from zifio.tasks.steps import Solution, alternatives_prm800k, from_prm800k, from_row, other_completions, split_steps
from zifio.tasks.task import Outcome, parse_response

_AT_ONCE = 500
IMPORTED = "imported"
"""Who labelled, where a file does not say."""


class Brought(NamedTuple):
    """What one line brings: an item, and a label where it has one."""

    item: Item
    said: Judgement | None = None
    labeler: str = IMPORTED
    phase: Phase = "blind"
    ms: int = 0
    timestamp: str = ""
    apart: "tuple[Brought, ...]" = ()
    """Its alternatives as items of their own."""


def import_file(desk: Desk, path: Path, prelabels: bool = False) -> dict[str, Any]:
    """Bring every line of a file into the desk; how many items and labels were new, how many labels and replies said
    nothing.

    With `prelabels` the file's labels are a machine's, hidden from everybody until they have given their own.
    Raises ConfigError with the line that is wrong; lines before its part of the file are in.
    """
    counts: Counter[str] = Counter()
    n_lines = _count(path)
    with path.open("rb") as file, Progress("import", n_lines) as progress:
        numbered = enumerate(file, 1)
        while part := list(islice(numbered, _AT_ONCE)):
            found = [_read(path, number, line, prelabels) for number, line in part if line.strip()]
            brought = [one for one in found if one is not None]
            counts["lines"] += len(found)
            counts["silent"] += len(found) - len(brought)
            with desk.store.write() as connection:
                _bring(desk, connection, path, brought, counts)
            progress.update(part[-1][0], {"items": counts["items"]})
    return {"path": str(path), **{name: counts[name] for name in ("lines", "items", "labels", "unclear", "silent")}}


def _count(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except OSError as error:
        raise ConfigError(
            f"{path}: wanted a file with a JSON object a line, came: {error.strerror}. Check the path."
        ) from None


def _bring(desk: Desk, connection: Connection, path: Path, brought: list[Brought], counts: "Counter[str]") -> None:
    brought = list(_placed(desk, connection, brought))
    items = [one.item.model_dump(mode="json") for one in brought]
    try:
        counts["items"] += desk.store.append_items(connection, str(path), items)
    except Conflict as error:
        raise ConfigError(f"{path}: {error}") from None
    people: dict[str, str] = {}  # by name: who is asked for once
    for one in brought:
        if one.said is None:
            continue
        if fault(one.item, one.said):
            counts["unclear"] += 1
        else:
            if one.labeler not in people:
                people[one.labeler] = desk.annotator_named(connection, one.labeler).id
            counts["labels"] += _label(desk, connection, one, one.said, people[one.labeler])


def _placed(desk: Desk, connection: Connection, brought: list[Brought]) -> Iterator[Brought]:
    """The same; but a label of a solution that is at the desk with other alternatives, as PRM800K's labellers had each
    their own, goes there without its own, which become items of their own. Who labels one solution labels one item."""
    standing = {item.id: item for item in desk.items(connection, [one.item.id for one in brought if one.said])}
    for one in brought:
        there = standing.setdefault(one.item.id, one.item)
        if one.said is None or there == one.item or there.model_copy(update=_varying(one.item)) != one.item:
            yield one
        elif there.alternatives == one.item.alternatives:
            yield one._replace(item=there)
        else:
            yield one._replace(item=there, said=one.said.model_copy(update={"alternatives": ()}))
            yield from one.apart


def _varying(item: Item) -> dict[str, Any]:
    """What labels of one solution may bring along differently."""
    return {name: getattr(item, name) for name in ("alternatives", "role", "expected")}


def _label(desk: Desk, connection: Connection, one: Brought, said: Judgement, who: str) -> bool:
    whole = said.model_dump(mode="json")
    name = content_id(one.item.id, whole, one.phase, one.timestamp)
    body = {"item": one.item.id, "phase": one.phase, "said": whole, "ms": one.ms, "queue": IMPORTED, "sent": name}
    if one.timestamp:
        body["timestamp"] = one.timestamp
    return desk.store.append(connection, "label", who, body, key=f"label:{who}:import-{name}").fresh


def _read(path: Path, number: int, line: bytes, prelabels: bool) -> Brought | None:
    """What a line brings; None of a reply without a word, as models give now and then."""
    where = f"{path}: line {number}"
    row = read_object(line, where)
    if (
        _is_reply(row)
        and isinstance(row["response"], str)
        and not f"{row.get('thinking') or ''}{row['response']}".strip()
    ):
        return None
    if b"\\ud" in line.lower():
        row = _well_formed(row)
    try:
        found = _understood(row, where)
        if prelabels and found.said is not None:
            hidden = None if fault(found.item, found.said) else found.said.model_dump(mode="json")
            found = Brought(build(Item, {**found.item.model_dump(mode="json"), "prelabel": hidden}, where))
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    if not found.item.id.isprintable():
        raise ConfigError(f"{where}: id: wanted printable characters, came {found.item.id!r}. Give another id.")
    return found


def _well_formed(value: Any) -> Any:
    """Without halves of characters, which JSON can write and Unicode does not know."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_well_formed(one) for one in value]
    return {_well_formed(key): _well_formed(one) for key, one in value.items()} if isinstance(value, dict) else value


def _is_reply(row: dict[str, Any]) -> bool:
    return "response" in row and "outcome" in row and "kind" not in row


def _understood(row: dict[str, Any], where: str) -> Brought:
    """One row of any format that we know, by its keys. Raises ConfigError."""
    if "question" in row and "label" in row:
        return _prm800k(row, where)
    if "labels" in row and ("completions" in row or "steps" in row):
        return _labelled(row, where)
    if "chosen" in row and "rejected" in row:
        return _preference(row, where)
    if "completion" in row and "label" in row:
        return _unpaired(row, where)
    if _is_reply(row):
        return _reply(row, where)
    return Brought(_item(row, where))


def _item(row: dict[str, Any], where: str) -> Item:
    """An item as people write it, whose steps may have nothing that parts them: then they get line ends."""
    if "id" not in row:
        row = {"id": content_id(row), **row}
    item = build(Item, row, where)
    parted = [step if step[-1:].isspace() else f"{step}\n" for step in item.steps[:-1]]
    return item.model_copy(update={"steps": (*parted, *item.steps[-1:])})


def _prm800k(row: dict[str, Any], where: str) -> Brought:
    solution, label = from_prm800k(row, where), row["label"]
    ours = row["zifio"] if isinstance(row.get("zifio"), dict) else {}
    others = [other_completions(step, f"{where}: step {n}") for n, step in enumerate(label["steps"], 1)]
    others += [[] for _ in solution.steps[len(others) :]]
    said: dict[str, Any] = {
        "finish": label.get("finish_reason") or "solution",
        "ratings": solution.labels,
        "note": ours.get("note", ""),
        "correction": next((text for text in map(_correction, label["steps"]) if text), ""),
        "flagged": ours.get("flagged", any(bool(_first(step).get("flagged")) for step in label["steps"])),
    }
    if any(others):
        said["alternatives"] = [[rating for _, rating in step] for step in others]
    if said["finish"] in ("found_error", "solution"):
        said["finish"] = "found_error" if -1 in solution.labels else "solution"
    item = _from_solution(solution, ours.get("id"), "prm800k")
    if any(others):
        item["alternatives"] = ours.get("alternatives") or [[text for text, _ in step] for step in others]
        given = [len(texts) for texts in item["alternatives"]]
        ratings = said["alternatives"]
        said["alternatives"] = [
            ratings[n] if len(ratings[n]) == length else [None] * length for n, length in enumerate(given)
        ]
    elif "alternatives" in ours:
        item["alternatives"] = ours["alternatives"]
    judgement, whole = build(Judgement, said, where), build(Item, item, where)
    role = "gold" if row.get("is_quality_control_question") else "work"
    role = "screening" if row.get("is_initial_screening_question") else role
    known = build(Judgement, ours["expected"], where) if ours.get("expected") else judgement
    if role != "work" and not fault(whole, known) and stance("steps", known) is not None:
        whole = build(Item, {**item, "role": role, "expected": known.model_dump(mode="json")}, where)
    ms, labeler, timestamp = label.get("total_time"), row.get("labeler"), str(row.get("timestamp") or "")
    phase = ours["phase"] if ours.get("phase") in get_args(Phase) else "blind"
    spent = ms if type(ms) is int and 0 <= ms <= LONGEST_MS else 0
    alone = Brought(whole, judgement, str(labeler or IMPORTED), phase, spent, timestamp)
    apart = alternatives_prm800k(row, where) if any(others) else []
    return alone._replace(apart=tuple(_apart(one, alone, where) for one in apart))


def _apart(solution: Solution, of: Brought, where: str) -> Brought:
    """An alternative to a step as an item of its own: the steps before it, and then it."""
    said = {"finish": "found_error" if -1 in solution.labels else "solution", "ratings": solution.labels}
    id = content_id("alternative", solution.prompt, solution.steps)
    item = build(Item, _from_solution(solution, id, "prm800k"), where)
    return of._replace(item=item, said=build(Judgement, said, where), ms=0)


def _from_solution(solution: Solution, id: Any, source: str) -> dict[str, Any]:
    """An item's keys from a labelled solution."""
    return {
        "id": id or content_id(solution.prompt, solution.steps),
        "prompt": solution.prompt,
        "steps": solution.steps,
        "gold": solution.gold,
        "answer": solution.answer,
        "problem": solution.problem_id,
        "outcome": solution.outcome if solution.outcome in get_args(Outcome) else "",
        "source": source,
    }


def _first(step: dict[str, Any]) -> dict[str, Any]:
    return (step.get("completions") or [{}])[step.get("chosen_completion") or 0]


def _correction(step: dict[str, Any]) -> str:
    """What a person wrote beside a step that stays as it is."""
    written = step.get("human_completion")
    return str(written.get("text") or "") if isinstance(written, dict) and step.get("chosen_completion") == 0 else ""


def _labelled(row: dict[str, Any], where: str) -> Brought:
    """A labelled solution, as TRL or as `zifio` itself writes it."""
    solution = from_row(row, where)
    finish = "found_error" if -1 in solution.labels else "solution"
    said = build(Judgement, {"finish": finish, "ratings": solution.labels}, where)
    item = build(Item, _from_solution(solution, None, "solution"), where)
    return Brought(item, said, solution.source or IMPORTED)


def _preference(row: dict[str, Any], where: str) -> Brought:
    texts = {"prompt": row.get("prompt"), "a": row["chosen"], "b": row["rejected"]}
    return Brought(_item({**texts, "kind": "pair"}, where), build(Judgement, {"value": "a"}, where))


def _unpaired(row: dict[str, Any], where: str) -> Brought:
    if not isinstance(row["label"], bool):
        raise ConfigError(f"{where}: label: wanted true or false, came {row['label']!r}.")
    item = _item({"prompt": row.get("prompt"), "response": row["completion"], "kind": "answer"}, where)
    return Brought(item, build(Judgement, {"value": "right" if row["label"] else "wrong"}, where))


def _reply(row: dict[str, Any], where: str) -> Brought:
    """A reply of `zifio eval` or `zifio sample`, step by step; the steps joined are its text."""
    text = row["response"]
    if not isinstance(text, str):
        raise ConfigError(f"{where}: response: wanted a text, came {text!r}.")
    if row.get("thinking") and THOUGHT not in text:
        text = f"{THINK}{row['thinking']}{THOUGHT}{text}"
    steps = split_steps(text)
    answer = (parse_response(text) or ("", str(row.get("answer") or "")))[1]
    problem = str(row.get("problem", ""))
    place = [str(row[key]) for key in ("place", "budget") if row.get(key) is not None]
    id = "/".join([problem, *place]) if problem else content_id(row.get("prompt"), text)
    item = {"id": id, "prompt": row.get("prompt"), "steps": steps, "answer": answer, "problem": problem}
    item |= {"gold": row.get("gold") or "", "outcome": row["outcome"] or "", "source": str(row.get("model") or "")}
    return Brought(build(Item, item, where))
