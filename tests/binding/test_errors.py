"""One class per kind of failure, all of them what Lama Cleaner's server catches."""

from __future__ import annotations

import pickle

import pytest

import lamagrid
from lamagrid import LamaGridError, _native, errors

KINDS = _native.failure_kinds()


def raised(kind: str) -> LamaGridError:
    with pytest.raises(LamaGridError) as info:
        _native.raise_failure(kind, "what happened")
    return info.value


@pytest.mark.parametrize(("kind", "name"), KINDS, ids=[kind for kind, _ in KINDS])
def test_each_kind_has_its_class(kind: str, name: str) -> None:
    error = raised(kind)
    assert type(error) is getattr(errors, name)
    assert isinstance(error, RuntimeError)
    assert error.kind == kind
    assert "what happened" in str(error)


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])
def test_each_can_be_pickled(kind: str) -> None:
    error = raised(kind)
    error.task_id = "0" * 32
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.__dict__) == (type(error), str(error), error.__dict__)


def test_every_class_is_raised_by_some_kind_or_derived_from_one_that_is() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, LamaGridError)]
    named = tuple(getattr(errors, name) for _, name in KINDS)
    assert [c for c in classes if c is not LamaGridError and not issubclass(c, named)] == []


def test_every_class_can_be_imported_from_the_package() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, LamaGridError)]
    assert len(classes) > 15
    for each in classes:
        assert getattr(lamagrid, each.__name__) is each
        assert each.__name__ in lamagrid.__all__


def test_out_of_memory_carries_what_upstream_looks_for() -> None:
    assert "CUDA out of memory. " in str(raised("out_of_memory"))
    assert str(errors.OutOfMemoryError("CUDA out of memory. Tried")) == "CUDA out of memory. Tried"


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        ("deadline_exceeded", TimeoutError),
        ("disconnected", ConnectionError),
        ("out_of_memory", MemoryError),
        ("unknown_model", LookupError),
        ("invalid_input", ValueError),
    ],
)
def test_natural_bases(kind: str, base: type[Exception]) -> None:
    assert isinstance(raised(kind), base)
