"""The examiner: honest programs pass, and no program passes that does not do what the tests want."""

import pytest

from zifio.tasks.coding import examine
from zifio.tasks.sandbox import Limits, NoSandbox, isolation

LIMITS = Limits(seconds=60, cpu_s=10)
HASTY = Limits(seconds=1.5)
TESTS = (
    "import random\n"
    "def check(candidate):\n"
    "    for _ in range(5):\n"
    "        x = random.randint(0, 10**6)\n"
    "        assert candidate(x) == x + 1, 'message'",
    "check(successor)",
)


@pytest.fixture(autouse=True)
def isolated() -> None:
    try:
        isolation()
    except NoSandbox as error:
        pytest.skip(str(error))


def judged(program: str, limits: Limits = LIMITS) -> tuple[bool, str]:
    return examine(program, "", ["successor"], TESTS, limits)


def test_an_honest_program_passes_and_a_wrong_one_is_told_where():
    assert judged("def successor(x): return x + 1") == (True, "")
    assert judged("def successor(x): return x") == (False, "failed: assert candidate(x) == x + 1, 'message'")
    assert "ZeroDivisionError" in judged("def successor(x): return x / 0")[1]
    assert "SyntaxError" in judged("def successor(x) return x")[1]
    assert "KeyError" in judged("def predecessor(x): return x")[1]


EQUAL = "class Equal({base}):\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
LIES = {
    "exit at once": "import os\nos._exit(0)",
    "exit politely": "import sys\nsys.exit(0)",
    "exit when called": "def successor(x): exit(0)",
    "a signal": "import os, signal\ndef successor(x): os.kill(os.getpid(), signal.SIGKILL)",
    "its own check": "def check(candidate): pass\ndef successor(x): return x",
    "no assertions": "import builtins\nbuiltins.AssertionError = KeyboardInterrupt\ndef successor(x): return x",
    "other builtins": (
        "import builtins, random\nrandom.randint = lambda a, b: 1\nbuiltins.range = lambda n: []\n"
        "builtins.exec = lambda *a: None\nbuiltins.compile = exec\ndef successor(x): return 2"
    ),
    "always equal": EQUAL.format(base="object") + "def successor(x): return Equal()",
    "an equal number": EQUAL.format(base="int") + "def successor(x): return Equal(0)",
    "equal text": EQUAL.format(base="str") + "def successor(x): return Equal(0)",
    "an equal list": EQUAL.format(base="list") + "def successor(x): return Equal([0])",
    "prints success": 'for _ in range(99): print(\'["right", ""]\', flush=True)\ndef successor(x): return x',
    "writes everywhere": (
        'import os\nfor fd in range(256):\n    try: os.write(fd, b\'["right", ""]\')\n    except OSError: pass\n'
        "def successor(x): return x"
    ),
    "a planted module": (
        "for name in ('random', 'json', 'sitecustomize', 'math', 'collections'):\n"
        "    open(name + '.py', 'w').write('import os; os.write(1, b\"right\"); randint = lambda a, b: 0')\n"
        "def successor(x): return 1"
    ),
    "the examiner's streams": (
        "import os, glob\nfor path in glob.glob('/proc/*/fd/*') + ['/dev/stdout', '/proc/1/fd/1']:\n"
        "    try: open(path, 'w').write('[\"right\", \"\"]')\n    except OSError: pass\ndef successor(x): return x"
    ),
    "the examiner's memory": (
        "import os\nfor pid in (1, os.getppid()):\n    for name in ('mem', 'maps', 'environ', 'syscall'):\n"
        "        try:\n            open(f'/proc/{pid}/{name}', 'rb').read(1)\n"
        "            successor = lambda x: x + 1  # would be told by a test that passes\n"
        "        except OSError: pass\n"
    ),
    "looks for the tests": (
        "import gc, sys\nneedle = ''.join(['rand', 'int'])\n"
        "found = [o for o in gc.get_objects() if isinstance(o, (dict, list, tuple)) and needle in o]\n"
        "frame, told = sys._getframe().f_back, ''\nwhile frame:\n    told += str(frame.f_locals)\n"
        "    frame = frame.f_back\n"
        "if found or needle in told: successor = lambda x: x + 1\n"
    ),
    "answers before it is asked": (
        "import gc\nfor thing in gc.get_objects():\n    if type(thing).__name__ == '_Wire':\n"
        "        for _ in range(50): thing.send([True, 1])\ndef successor(x): return x"
    ),
    "nonsense on the wire": (
        "import gc\nfor thing in gc.get_objects():\n    if type(thing).__name__ == '_Wire':\n"
        "        thing.end.sendall(b'\\xff' * 64)\ndef successor(x): return x"
    ),
    "interrupts": ("import os, signal\ndef successor(x):\n    os.kill(os.getppid(), signal.SIGINT)\n    return x"),
    "kills the examiner": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "a child that answers": "import os\nif os.fork() == 0: os._exit(0)\ndef successor(x): return x",
    "at the end": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "a list without bottom": "a = []\na.append(a)\ndef successor(x): return a",
    "a list too deep": "a = []\nfor _ in range(10**5): a = [a]\ndef successor(x): return a",
    "a value too large": "def successor(x): return 'x' * (1 << 25)",
    "a number too large": "def successor(x): return 10 ** 200000",
    "not a number": "def successor(x): return float('nan')",
    "recursion": "def successor(x): return successor(x)",
    "memory": "def successor(x): return bytearray(1 << 40)",
}


@pytest.mark.parametrize("program", LIES.values(), ids=LIES.keys())
def test_no_lie_passes(program):
    right, why = judged(program)
    assert not right and why


SLOW_LIES = {
    "no end": "def successor(x):\n    while True: pass",
    "no end at once": "while True: pass",
    "an iterator without end": "import itertools\ndef successor(x): return itertools.count()",
    "stops the examiner": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory of many": "import os\nfor _ in range(9): os.fork() or setattr(os, 'held', b'x' * (1 << 28))\nwhile 1: pass",
}


@pytest.mark.parametrize("program", SLOW_LIES.values(), ids=SLOW_LIES.keys())
def test_no_lie_that_takes_long_passes(program):
    right, why = judged(program, HASTY)
    assert not right and why


VALUES = [
    "None", "True", "0", "-3", "10**40", "1.5", "-0.0", "float('inf')", "2+3j", "'a\\n\\ud800ü'", "b'\\0\\xff'", "[]",
    "()", "[1, [2, (3, {4, 5})], {'a': [None], (1, 2): 3}]", "frozenset({1})", "range(3, 9, 2)", "[True, 1.0]", "[int]",
]  # fmt: skip


def test_plain_values_arrive_as_they_are():
    """Both ways, with their types."""
    tests = [
        f"assert type(echo({value})) is type({value}) and repr(echo({value})) == repr({value})" for value in VALUES
    ]
    assert examine("def echo(value): return value", "", ["echo"], tests, LIMITS) == (True, "")


def test_relatives_of_plain_values_arrive_plain():
    program = (
        "import collections, enum\nPoint = collections.namedtuple('Point', 'x y')\n"
        "class Color(enum.IntEnum):\n    RED = 3\n"
        "def some(kind):\n"
        "    return {'tuple': Point(1, 2), 'dict': collections.Counter('aab'), 'int': Color.RED}[kind]\n"
    )
    tests = ["assert some('tuple') == (1, 2)", "assert some('dict') == {'a': 2, 'b': 1}", "assert some('int') == 3",
             "assert type(some('dict')) is dict"]  # fmt: skip
    assert examine(program, "", ["some"], tests, LIMITS) == (True, "")


def test_objects_stay_with_the_program_and_can_be_used():
    program = (
        "class Node:\n    def __init__(self, value): self.value, self.next = value, None\n"
        "    def double(self): return Node(2 * self.value)\n"
        "def total(node): return node.value + (total(node.next) if node.next else 0)\n"
        "def upto(n):\n    yield from range(n)\n"
    )
    tests = [
        "root = Node(1)\nroot.next = Node(value=2)\nassert total(root) == 3 and root.next.value == 2",
        "assert root.double().value == 2 and root != Node(1)",
        "assert list(upto(3)) == [0, 1, 2] and sum(upto(4)) == 6",
        "try:\n    total(object())\nexcept Exception as error:\n    assert 'object' in str(error)\n"
        "else:\n    raise AssertionError",
    ]
    assert examine(program, "", ["Node", "total", "upto"], tests, LIMITS) == (True, "")


@pytest.mark.parametrize("preamble, tests", [("import no_such_module", []), ("def", []), ("", ["assert ("])])
def test_broken_tests_are_nobodys_fault(preamble, tests):
    with pytest.raises(ValueError, match="the tests"):
        examine("", preamble, [], tests, LIMITS)


def test_a_test_that_raises_by_itself_does_not_pass():
    assert examine("", "", [], ["1 / 0"], LIMITS) == (False, "at 1 / 0: raised division by zero")
