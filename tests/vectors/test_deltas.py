"""The deltas of several vectors on one base: all faults are in one error."""

import pytest

from dem_hub import DistributionVector, VectorSource
from dem_hub.checkpoints.base_model import Base
from dem_hub.errors import BaseMismatchError
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.vectors.deltas import all_deltas
from tests.support.tiny_models import Zoo


def test_the_faults_of_all_vectors_are_in_one_error(zoo: Zoo) -> None:
    base = Base(resolve(VectorSource(str(zoo.models("llama-tied").base)), MODEL_FILES))
    names = [zoo.vector(family, "bfloat16", "dense") for family in ("gpt2", "llama-tied", "llama-untied")]
    vectors = [DistributionVector.from_pretrained(name) for name in names]
    with pytest.raises(BaseMismatchError, match="2 of 3 vectors cannot be put on") as caught:
        all_deltas(vectors, base)
    assert str(names[0]) in str(caught.value) and str(names[2]) in str(caught.value)
    assert str(names[1]) not in str(caught.value)


def test_the_only_fault_is_raised_as_it_is(zoo: Zoo) -> None:
    base = Base(resolve(VectorSource(str(zoo.models("llama-tied").base)), MODEL_FILES))
    vector = DistributionVector.from_pretrained(zoo.vector("gpt2", "bfloat16", "dense"))
    with pytest.raises(BaseMismatchError, match="does not fit the base") as caught:
        all_deltas([vector], base)
    assert "vectors cannot be put on" not in str(caught.value)


def test_in_the_order_of_the_vectors(zoo: Zoo) -> None:
    base = Base(resolve(VectorSource(str(zoo.models("llama-tied").base)), MODEL_FILES))
    vectors = [
        DistributionVector.from_pretrained(zoo.vector("llama-tied", "bfloat16", kind)) for kind in ("dense", "lossy")
    ]
    assert [set(deltas) for deltas in all_deltas(vectors, base)] == [set(vector.deltas(base)) for vector in vectors]
