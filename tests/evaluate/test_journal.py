"""The records of an evaluation: none lost, none doubled, whoever kills the process; one process to a folder."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from zifio.config import ConfigError
from zifio.evaluate.journal import Journal, Key, read_identity

WHO = {"subject": {"model": "abc"}, "seed": 0, "task": {"name": "t", "max": 4}}


def row(number: int, place: int = 0, budget: int | None = None) -> dict:
    return {"problem": f"p/{number}", "place": place, "budget": budget, "outcome": "right", "response": "ü\ud800\n" * 9}


def test_what_is_written_is_read(tmp_path):
    journal = Journal(tmp_path)
    with journal.open(WHO) as kept:
        assert kept == {}
        journal.append([row(0), row(1, 2, 64)])
    with journal.open(WHO) as kept:
        assert list(kept) == [Key("p/0", 0, None), Key("p/1", 2, 64)]
        assert kept[Key("p/0", 0, None)] == row(0)
    assert read_identity(tmp_path) == WHO


def test_a_torn_end_is_cut_off(tmp_path):
    journal = Journal(tmp_path)
    with journal.open(WHO):
        journal.append([row(0), row(1)])
    whole = journal.records.read_bytes()
    for length in range(0, len(whole), 5):
        journal.records.write_bytes(whole[:length])
        with journal.open(WHO) as kept:
            n = whole[:length].count(b"\n")
            assert len(kept) == n
            journal.append([row(number) for number in range(n, 2)])
        assert journal.records.read_bytes() == whole


def test_nothing_is_written_of_what_json_cannot_hold(tmp_path):
    journal = Journal(tmp_path)
    with journal.open(WHO):
        journal.append([row(0)])
        with pytest.raises(ValueError):
            journal.append([row(1), row(2) | {"logp": float("nan")}])
        assert len(journal.read()) == 1


@pytest.mark.parametrize("line", ["no json", "[1]", '{"problem": "p/0"}'])
def test_broken_and_doubled_lines_are_named(tmp_path, line):
    journal = Journal(tmp_path)
    with journal.open(WHO):
        journal.append([row(0)])
    for added, message in ((line, "line 2: wanted the record"), (json.dumps(row(0)), "line 2: wanted each reply once")):
        before = journal.records.read_bytes()
        journal.records.write_bytes(before + added.encode() + b"\n")
        with pytest.raises(ConfigError, match=message), journal.open(WHO):
            pass
        journal.records.write_bytes(before)


def test_replies_to_another_exam_are_not_mixed_in(tmp_path):
    journal = Journal(tmp_path)
    with journal.open(WHO):
        journal.append([row(0)])
    other = {**WHO, "task": {"name": "t", "max": 9}}
    with pytest.raises(ConfigError, match=r"task.max: 4 -> 9.*--fresh"), journal.open(other):
        pass
    with journal.open(other, fresh=True) as kept:
        assert kept == {}


def test_two_processes_do_not_share_a_folder(tmp_path):
    journal = Journal(tmp_path)
    ready = multiprocessing.get_context("spawn").Event()
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, ready))
    holder.start()
    try:
        assert ready.wait(20)
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid}"), journal.open(WHO):
            pass
    finally:
        holder.kill()
        holder.join()
    with journal.open(WHO):
        pass  # a killed process holds nothing


def hold(folder: Path, ready) -> None:
    with Journal(folder).open(WHO):
        ready.set()
        time.sleep(60)


def write_on(folder: Path, total: int) -> None:
    """Write the rows that are missing, one by one."""
    journal = Journal(folder)
    with journal.open(WHO) as kept:
        for number in range(total):
            if Key(f"p/{number}", 0, None) not in kept:
                journal.append([row(number) | {"pid": os.getpid()}])
                time.sleep(0.0005)


def test_killed_again_and_again_no_record_is_lost_or_doubled(tmp_path):
    """Killed with SIGKILL at five moments in the middle of writing; what had been seen stays as it was."""
    context = multiprocessing.get_context("spawn")
    seen: list[bytes] = []
    kills = 0
    for pause_s in (0.01, 0.03, 0.05, 0.02, 0.04):
        process = context.Process(target=write_on, args=(tmp_path, 2000))
        process.start()
        records = tmp_path / "records.jsonl"
        while not (records.exists() and records.stat().st_size > sum(map(len, seen))) and process.is_alive():
            time.sleep(0.001)
        time.sleep(pause_s)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        whole = records.read_bytes()
        lines = whole[: whole.rfind(b"\n") + 1].splitlines(keepends=True)
        assert lines[: len(seen)] == seen
        assert len(lines) > len(seen)
        seen = lines
    assert kills == 5
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(b'{"problem": "p/19')  # torn, as if in the middle of a write
    write_on(tmp_path, 2000)
    numbers = [json.loads(line)["problem"] for line in (tmp_path / "records.jsonl").read_bytes().splitlines()]
    assert sorted(numbers) == sorted(f"p/{number}" for number in range(2000))
