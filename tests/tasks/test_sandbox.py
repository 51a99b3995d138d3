"""The sandbox as a tool: what a program gets, what comes back, and how it is refused."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zifio.config import ConfigError
from zifio.tasks import sandbox
from zifio.tasks.jail import filter
from zifio.tasks.sandbox import Limits, NoSandbox, SandboxError, python_output, run, why_not

KINDS = ("namespaces", "bubblewrap", "user namespaces", "none")


@pytest.fixture(params=KINDS)
def how(request):
    if why_not(request.param):
        pytest.skip(f"{request.param}: {why_not(request.param)}")
    return request.param


def test_streams_codes_and_files(how):
    ran = run(
        "import sys, helper\nprint(helper.twice(input()))\nprint('oh', file=sys.stderr)\nsys.exit(7)",
        files={"helper.py": "def twice(text): return text * 2", "deep/data.bin": b"\0"},
        stdin="ab\n",
        how=how,
    )
    assert (ran.status, ran.code, ran.stdout, ran.stderr) == ("failed", 7, "abab\n", "oh\n")
    assert ran.isolation.startswith(how)
    assert ("seccomp" in ran.isolation) == (how != "none" and bool(filter.instructions()))


def test_a_command_runs_as_it_is(how):
    ran = run(["/bin/sh", "-c", "cat data; kill -TERM $$"], files={"data": "x"}, how=how)
    assert (ran.status, ran.code, ran.stdout) == ("failed", -15, "x")
    assert run(["/no/such/program"], how=how).code == 127


def test_each_run_starts_anew(how):
    assert run("open('left', 'w').write('x')", how=how).status == "ok"
    ran = run("import os; print(os.listdir('.'), dict(os.environ))", how=how)
    assert ran.stdout.startswith("['program.py']") and "PATH" not in ran.stdout and "HOME" not in ran.stdout


def test_much_input_that_nobody_reads_and_much_that_is_read(how):
    big = "x" * (1 << 20)
    assert run("pass", stdin=big, how=how).status == "ok"
    assert run("import sys; print(len(sys.stdin.read()))", stdin=big, how=how).stdout == f"{1 << 20}\n"


def test_many_at_once_do_not_mix():
    if why_not("namespaces") and why_not("bubblewrap") and why_not("user namespaces"):
        pytest.skip("no isolation here")
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda n: run(f"print({n})", limits=Limits(seconds=60)).stdout, range(24)))
    assert told == [f"{n}\n" for n in range(24)]


def test_limits_say_which(how):
    assert run("while True: pass", limits=Limits(seconds=0.5), how=how).status == "timeout"
    assert run("while True: pass", limits=Limits(seconds=60, cpu_s=1), how=how).status == "timeout"
    assert run("x = bytearray(1 << 30)", how=how).status == "memory"
    ran = run("print('x' * 5000)", limits=Limits(output_bytes=100), how=how)
    assert (ran.status, ran.stdout, ran.code) == ("output", "x" * 100, None)


def test_text_that_is_no_unicode_comes_back_all_the_same(how):
    assert run("import os; os.write(1, b'a\\xff')", how=how).stdout == "a\ufffd"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a\0b"])
def test_files_stay_in_their_folder(name):
    with pytest.raises(ConfigError, match="relative"):
        run("pass", files={name: ""}, how="none")


def test_the_programs_own_name_is_taken():
    with pytest.raises(ConfigError, match=r"program\.py"):
        run("pass", files={"program.py": ""}, how="none")


def test_without_isolation_it_refuses_and_says_the_way_out(monkeypatch):
    monkeypatch.setattr(sandbox, "why_not", lambda how: "" if how == "none" else "not allowed")
    with pytest.raises(NoSandbox, match=r"not allowed.*unsafe = true"):
        run("print(1)")
    assert issubclass(NoSandbox, ConfigError)
    ran = run("print(1)", unsafe=True)
    assert (ran.stdout, ran.isolation) == ("1\n", "none")


def test_unsafe_is_no_wish_where_there_is_isolation():
    if why_not("namespaces") and why_not("bubblewrap") and why_not("user namespaces"):
        pytest.skip("no isolation here")
    assert run("pass", unsafe=True).isolation != "none"


def test_a_broken_sandbox_is_no_failed_program(monkeypatch):
    monkeypatch.setattr(sandbox, "_LAUNCH", "import sys; sys.exit('burnt {root} {channel}')")
    with pytest.raises(SandboxError, match="burnt"):
        run("pass", how="none")


def test_a_machine_without_namespaces_is_named():
    """Nothing is mistaken for isolation: who may not make namespaces is told so."""
    code = (
        "from zifio.tasks.sandbox import *\n"
        "from zifio.tasks.jail import filter, kernel\n"
        "kernel.drop_bounds(); kernel.drop_privileges(); filter.install()\n"  # which forbids unshare
        "print(why_not('namespaces'), '|', why_not('user namespaces'))\n"
        "try: run('pass')\n"
        "except NoSandbox as error: print(error)\n"
    )
    if not filter.instructions():
        pytest.skip("no filter on this machine")
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert "not root" in told.stdout and "unshare" in told.stdout and "unsafe" in told.stdout, told


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("print(6 * 7)", "42"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("exit(3)", ""),
        ("print('a', flush=True)\nwhile True: pass", "a\n[stopped after 1 s]"),
        ("import os; os.kill(os.getpid(), 11)", "[ended by signal 11]"),
        ("x = 'a' * 2**40", "MemoryError\n[stopped: more than 512 MiB of memory]"),
    ],
)
def test_what_a_snippet_prints(source, told):
    output = python_output(source, Limits(seconds=1), unsafe=True)
    assert output.endswith(told) and bool(output) == bool(told)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_as_listed(machine):
    """The BPF program, run by a reader of its own: denied calls fail, others pass, foreign ones kill."""
    code = filter.instructions(machine)
    arch = filter._AUDIT_ARCH[machine]
    column = ["x86_64", "aarch64"].index(machine)

    def decide(number, *args, arch=arch):
        args = [*args, 0, 0, 0, 0][:4]
        fields = {0: number, 4: arch, **{16 + 8 * place: value for place, value in enumerate(args)}}
        at, held = 0, 0
        while True:
            kind, yes, no, operand = code[at]
            at += 1
            if kind == filter._LOAD:
                held = fields[operand]
            elif kind == filter._RETURN:
                return operand
            else:
                true = {
                    filter._EQUAL: held == operand,
                    filter._AT_LEAST: held >= operand,
                    filter._ANY_BIT: bool(held & operand),
                }[kind]
                at += yes if true else no

    words = filter._DENIED.split()
    for number in words[1 + column :: 3]:
        assert number == "-" or decide(int(number)) == filter._FAIL | 1
    reading_writing_ending = ((0, 1, 3, 59, 60, 231), (63, 64, 57, 221, 93, 94))[column]
    for number in (*reading_writing_ending, 434):
        assert decide(number) == filter._ALLOW
    for number in (425, 428, 435, 438, 447, 900):
        assert decide(number) == filter._FAIL | 38
    clone, connect, mapping = filter._CLONE[column], filter._SOCKET[column], filter._MMAP[column]
    assert decide(clone, 17) == filter._ALLOW and decide(clone, 17 | 0x10000000) == filter._FAIL | 1
    assert decide(connect, 1) == filter._ALLOW and decide(connect, 2) == decide(connect, 40) == filter._FAIL | 97
    assert decide(mapping, 0, 0, 0, 0x22) == decide(mapping, 0, 0, 0, 0x01) == filter._ALLOW
    assert decide(mapping, 0, 0, 0, 0x21) == filter._FAIL | 1
    assert decide(1, arch=0x40000003) == decide(0x40000001) == filter._KILL
    assert filter.instructions("riscv64") == []


def test_a_program_that_runs_as_root_owns_nothing():
    """Where we are root, the program is a user that no file belongs to."""
    if os.geteuid() or why_not("namespaces"):
        pytest.skip("not root")
    told = run("import os; print(os.getuid(), os.getgid(), os.getgroups())").stdout.split(maxsplit=2)
    assert int(told[0]) >= sandbox._FIRST_USER and told[1] == told[0] and told[2] == "[]\n"
