"""Calls in child processes: answers in order; a crash or a hang costs one call, and the child comes back."""

import time

import pytest

from aligner.children import Child, Lost, each_in_children


@pytest.fixture
def child():
    child = Child("json:dumps")
    yield child
    child.close()


def test_a_child_answers_and_keeps_its_process(child: Child) -> None:
    assert (
        child.call({"obj": {"größe": "zwei\nzeilen"}, "sort_keys": True}, 30.0)
        == '{"gr\\u00f6\\u00dfe": "zwei\\nzeilen"}'
    )
    first = child._process
    assert child.call({"obj": [1, 2]}, 30.0) == "[1, 2]"
    assert child._process is first


@pytest.mark.parametrize(
    ("function", "limit_s", "kind", "message"),
    [
        ("signal:pause", 0.3, "timeout", "took longer than 0.3 s"),
        ("os:abort", 30.0, "crash", "SIGABRT"),
        ("sys:exit", 30.0, "crash", "exit code 0"),
        ("no_such_module:f", 30.0, "crash", "exit code 1"),
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
