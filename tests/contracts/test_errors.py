"""One tree of errors, each also the standard type a caller would guess."""

import pickle

import pytest

from dem_hub import errors
from dem_hub.errors import DemHubError, NotFoundError, refuse

STANDARD = {
    "ConfigError": ValueError,
    "CheckpointError": ValueError,
    "BaseMismatchError": ValueError,
    "AdapterError": ValueError,
    "CodecError": ValueError,
    "CoefficientError": ValueError,
    "NotFoundError": FileNotFoundError,
    "VectorNotFoundError": NotFoundError,
    "MissingDependencyError": ImportError,
    "PushConflictError": RuntimeError,
    "DiskSpaceError": OSError,
    "BusyError": OSError,
    "HubError": OSError,
}
CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, DemHubError) and value is not DemHubError
]
each_class = pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)


def test_the_tree_is_known() -> None:
    assert {error.__name__ for error in CLASSES} == set(STANDARD)


@each_class
def test_standard_type(error: type[DemHubError]) -> None:
    assert issubclass(error, STANDARD[error.__name__])


@each_class
def test_survives_pickling(error: type[DemHubError]) -> None:
    with pytest.raises(error) as caught:
        refuse(error, "Two faults.", ["one", "two"], "Do this.")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is error
    assert str(copy) == str(caught.value) == "Two faults.\n  - one\n  - two\nDo this."


def test_refuse_without_remedy() -> None:
    with pytest.raises(DemHubError) as caught:
        refuse(DemHubError, "A fault.", ["one"])
    assert str(caught.value) == "A fault.\n  - one"
