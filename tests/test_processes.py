import pytest

from diffdepth_jax.errors import DataError, FileError, UserError
from diffdepth_jax.processes import Processes
from tests.together import together


def test_a_single_process_needs_no_exchange():
    alone = Processes()
    assert alone.is_first
    assert alone.gather({"a": 1}) == [{"a": 1}]
    assert alone.from_first(lambda: 3) == 3
    with pytest.raises(KeyError), alone.agreed():
        raise KeyError("as it was")
    with pytest.raises(ValueError, match="1 of 2"):
        Processes(1, 2)


def test_all_get_the_values_of_all_in_order():
    assert (
        together(lambda each: each.gather([each.index, "ü"]))
        == [[[0, "ü"], [1, "ü"], [2, "ü"]]] * 3
    )


def test_the_first_computes_for_all():
    called = []

    def function(each):
        return each.from_first(lambda: called.append(each.index) or each.index)

    assert together(function) == [0, 0, 0]
    assert called == [0]


def test_a_user_error_stops_all_with_the_same_class():
    def function(each):
        def fail():
            raise FileError("the disk is full")

        return each.from_first(fail)

    first, *others = together(function)
    assert str(first) == "the disk is full"
    assert all(type(error) is FileError for error in (first, *others))
    assert [str(error) for error in others] == ["process 0: the disk is full"] * 2


def test_an_error_reaches_processes_in_an_earlier_round():
    """A process that fails takes part in no further round, nor do those that learn of it."""

    def function(each):
        with each.agreed():
            with each.agreed():
                if each.index == 1:
                    raise DataError("no such frame")
                each.gather("still at work")
            each.gather("never reached")

    first, own, last = together(function)
    assert str(own) == "no such frame"
    assert type(first) is type(last) is DataError
    assert str(first) == str(last) == "process 1: no such frame"


def test_a_bug_is_not_mistaken_for_a_user_error():
    def function(each):
        with each.agreed():
            if each.index == 2:
                raise KeyError("a")

    first, second, own = together(function)
    assert type(own) is KeyError
    assert type(first) is type(second) is RuntimeError
    assert not isinstance(first, UserError)
    assert str(first) == "process 2 failed: KeyError: 'a'"
