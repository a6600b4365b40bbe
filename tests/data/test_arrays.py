"""Arrays of the user's own as a data set: what does not fit is one line."""

import numpy as np
import pytest

from cnnlab.data.dataset import from_arrays
from cnnlab.errors import InputError

IMAGES = np.zeros((4, 2, 2, 3), np.uint8)


def failure(call, *args, **keywords) -> str:
    with pytest.raises(InputError) as error:
        call(*args, **keywords)
    assert len(str(error.value).splitlines()) == 1, error.value
    return str(error.value)


@pytest.mark.parametrize(("more", "message"), [
    ({"train": (IMAGES, np.array([0, 1, 2**32 + 1, 2]))}, "must number the classes from 0, got"),
    ({"train": (IMAGES, np.array([0, 1, 10**9, 2]))}, "its 8 images go up to 1000000000; they"),
    ({"class_names": np.array("cat")}, "class_names must be a list of names, got cat"),
    ({"class_names": 5}, "class_names must be a list of names, got 5"),
    ({"class_names": ["a", "b", "a"]}, "two classes have the name 'a'"),
    ({"mirror": np.array([1, 0])}, "mirror is true or false"),
    ({"taken_for": np.array([1, 0])}, "taken_for {class: the class that it is taken for}"),
])  # fmt: skip
def test_arrays_that_are_refused(more, message):
    pair = IMAGES, np.array([0, 1, 2, 2])
    assert message in failure(from_arrays, "mine", {"train": pair, "test": pair} | more)


def test_numbers_of_classes_and_names_as_bytes():
    pair = IMAGES, np.array([0, 1, 999, 2])
    assert from_arrays("mine", {"train": pair, "test": pair}).num_classes == 1000
    pair = IMAGES, np.array([0, 1, 1, 0])
    named = {"train": pair, "test": pair, "class_names": np.array([b"cat", b"dog"])}
    assert from_arrays("mine", named).class_names == ("cat", "dog")


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_fraction_that_leaves_nothing(fraction):
    pair = IMAGES, np.array([0, 1, 0, 1])
    message = failure(from_arrays, "mine", {"train": pair}, test_fraction=fraction)
    assert ("holds out no image" if fraction < 0.5 else "leaves no image to train on") in message
