"""Calls in child processes: answers in order; a crash or a hang costs one call, and the child comes back."""

import os
import time
from pathlib import Path

import pytest

from aligner import children
from aligner.children import Child, Lost, WithBytes, each_in_children
from aligner.config import AlignerError


@pytest.fixture
def child():
    child = Child("json:dumps")
    yield child
    child.close()
    if child.process is not None:
        child.bury()


def test_a_child_answers_and_keeps_its_process(child: Child) -> None:
    assert (
        child.call({"obj": {"größe": "zwei\nzeilen"}, "sort_keys": True}, 30.0)
        == '{"gr\\u00f6\\u00dfe": "zwei\\nzeilen"}'
    )
    first = child.process
    assert child.call({"obj": [1, 2]}, 30.0) == "[1, 2]"
    assert child.process is first


@pytest.mark.parametrize(
    ("function", "limit_s", "kind", "message"),
    [
        ("signal:pause", 0.3, "timeout", "took longer than 0.3 s"),
        ("os:abort", 30.0, "crash", "SIGABRT"),
        ("sys:exit", 30.0, "crash", "exit code 0"),
        ("json:no_such_function", 30.0, "crash", "exit code 1"),
    ],
)
def test_a_lost_child_is_told_and_replaced(
    child: Child, function: str, limit_s: float, kind: str, message: str
) -> None:
    child.call({"obj": 0}, 30.0)
    child.function = function
    with pytest.raises(Lost, match=message) as lost:
        child.call({}, limit_s)
    assert lost.value.kind == kind
    child.function = "json:dumps"
    assert child.call({"obj": 1}, 30.0) == "1"


def test_what_a_function_prints_is_no_answer(child: Child) -> None:
    child.function = "os:system"
    assert child.call({"command": "echo noise"}, 30.0) == 0
    child.function = "subprocess:getoutput"
    assert child.call({"cmd": "echo $((6 * 7))"}, 30.0) == "42"


def test_answers_keep_the_order_of_the_calls() -> None:
    calls = [{"obj": number} for number in range(40)]
    assert list(each_in_children("json:dumps", calls, 3, 30.0)) == [str(number) for number in range(40)]


def test_a_hang_takes_its_limit_and_no_longer() -> None:
    start = time.monotonic()
    answers = list(each_in_children("signal:pause", [{}, {}], 2, 0.3))
    assert [answer.kind for answer in answers] == ["timeout", "timeout"]
    assert time.monotonic() - start < 10


def test_bytes_come_behind_their_answer(
    child: Child, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "giver.py").write_text(
        "from aligner.children import WithBytes\n"
        "def give(count):\n    return WithBytes({'count': count}, bytes(range(256)) * count)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    child.function = "giver:give"
    for count in (3, 0, 40_000, 1):
        assert child.call({"count": count}, 30.0) == WithBytes({"count": count}, bytes(range(256)) * count)


@pytest.mark.parametrize("half", ['{"value": 1, "bytes": 100}\nhalf', '{"value": 1, "by', ""])
def test_half_an_answer_is_none(child: Child, monkeypatch: pytest.MonkeyPatch, half: str) -> None:
    dying = f"print('ready', flush=True); input(); print({half!r}, end='', flush=True); raise SystemExit(7)"
    monkeypatch.setattr(children, "START", dying)
    with pytest.raises(Lost, match="died 2 times, the last time by exit code 7") as lost:
        child.call({}, 30.0)
    assert lost.value.kind == "crash"


def test_a_child_that_died_between_two_calls_is_no_fault_of_either(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "TRIES", 1)
    assert child.call({"obj": 1}, 30.0) == "1"
    child.process.kill()
    child.process.wait()
    assert child.call({"obj": 2}, 30.0) == "2"


def test_a_module_that_cannot_be_loaded_is_no_fault_of_a_call(child: Child) -> None:
    child.function = "no_such_module:f"
    with pytest.raises(AlignerError, match="no child process can be started .it ended by exit code 1"):
        child.call({}, 30.0)


def test_a_closed_child_stays_closed(child: Child) -> None:
    child.call({"obj": 1}, 30.0)
    child.close()
    with pytest.raises(AlignerError, match="closed"):
        child.call({"obj": 1}, 30.0)
