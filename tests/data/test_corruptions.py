"""Wrong labels, long tails and fewer images: shares that are exact or known, draws that depend on
the seed only.
"""

import dataclasses

import numpy as np
import pytest
from archives import CIFAR10_NAMES

from cnnlab.data import catalogue, corruptions, dataset
from cnnlab.errors import InputError

K = 10
N = 20_000
LABELS = np.random.default_rng(0).permutation(np.arange(N, dtype=np.int32) % K)


def changed(before, after):
    """The fields that are not the very same objects."""
    names = [field.name for field in dataclasses.fields(before)]
    return [name for name in names if getattr(before, name) is not getattr(after, name)]


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.8])
def test_symmetric_noise(rate):
    noisy = corruptions.symmetric_noise(LABELS, rate, K, seed=3)
    assert noisy.dtype == np.int32 and noisy.min() >= 0 and noisy.max() < K
    wrong = noisy != LABELS
    assert abs(wrong.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / N)  # four standard errors
    if rate:
        confusion = np.zeros((K, K))
        np.add.at(confusion, (LABELS, noisy), 1)
        off = confusion[~np.eye(K, dtype=bool)]
        expected = N * rate / (K * (K - 1))
        assert abs(off - expected).max() < 5 * np.sqrt(expected)  # every other class alike


def test_noise_is_nested_and_depends_on_the_seed_only():
    draws = {rate: corruptions.symmetric_noise(LABELS, rate, K, seed=7) for rate in (0.2, 0.4)}
    wrong = draws[0.2] != LABELS
    np.testing.assert_array_equal(draws[0.4][wrong], draws[0.2][wrong])
    np.testing.assert_array_equal(corruptions.symmetric_noise(LABELS, 0.4, K, seed=7), draws[0.4])
    other = corruptions.symmetric_noise(LABELS, 0.4, K, seed=8)
    # Independent of the other seed's
    assert 0.4 < np.mean((other != LABELS)[draws[0.4] != LABELS]) + 0.03 < 0.46


def test_asymmetric_noise_takes_the_classes_of_cifar10_for_their_likes():
    other = corruptions.taken_for(catalogue.TAKEN_FOR["cifar10"], K)
    pairs = {CIFAR10_NAMES[k]: CIFAR10_NAMES[j] for k, j in enumerate(other) if k != j}
    assert pairs == {
        "truck": "automobile",
        "bird": "airplane",
        "deer": "horse",
        "cat": "dog",
        "dog": "cat",
    }
    noisy = corruptions.asymmetric_noise(LABELS, 0.4, other, seed=1)
    for k, j in enumerate(other):
        of_class = noisy[k == LABELS]
        assert set(of_class) <= {k, j}
        if k != j:
            assert abs(np.mean(of_class == j) - 0.4) < 4 * np.sqrt(0.24 / len(of_class))
    np.testing.assert_array_equal(corruptions.taken_for({}, 3), [1, 2, 0])


# The classes of each superclass as https://www.cs.toronto.edu/~kriz/cifar.html lists them.
CIFAR100 = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}


def test_superclasses_of_cifar100_are_those_of_its_names():
    numbers = {
        name: number for number, group in enumerate(CIFAR100.values()) for name in group.split()
    }
    wanted = tuple(numbers[name] for name in sorted(numbers))  # classes are in the order of names
    assert catalogue.superclasses_of("cifar100", 100) == wanted
    assert catalogue.superclasses_of("cifar100", 20) == ()  # its coarse label
    assert catalogue.superclasses_of("cifar10", 10) == ()


def test_superclass_noise_takes_each_class_for_the_next_of_its_superclass():
    superclasses = catalogue.SUPERCLASSES["cifar100"]
    labels = np.random.default_rng(0).permutation(np.arange(N, dtype=np.int32) % 100)
    before = a_dataset(labels=labels, class_names=tuple(map(str, range(100))))
    with pytest.raises(InputError, match="superclass_noise needs the superclass of each class"):
        corruptions.superclass_noise(before, 3, 0.4)
    before = dataclasses.replace(before, superclasses=superclasses)
    after = corruptions.superclass_noise(before, 3, 0.4)
    assert changed(before, after) == ["targets"] and after.targets.dtype == np.int32
    wrong = after.targets != labels
    # The images that label_noise makes wrong at this rate
    noisy = corruptions.label_noise(before, 3, 0.4)
    np.testing.assert_array_equal(wrong, noisy.targets != labels)
    people = {2: 11, 11: 35, 35: 46, 46: 98, 98: 2}  # baby, boy, girl, man, woman
    for k, taken in people.items():
        assert set(after.targets[wrong & (labels == k)]) == {taken}
    of_superclass = np.array(superclasses)
    np.testing.assert_array_equal(of_superclass[after.targets], of_superclass[labels])
    assert abs(wrong.mean() - 0.4) <= 4 * np.sqrt(0.24 / N)  # four standard errors
    less = corruptions.superclass_noise(before, 3, 0.2).targets
    np.testing.assert_array_equal(less[less != labels], after.targets[less != labels])


def test_a_class_alone_in_its_superclass_never_errs():
    after = corruptions.superclass_noise(
        a_dataset(superclasses=(5, 1, 1, 1, 2, 2, 2, 2, 2, 5)), 3, 0.5
    )
    assert set(after.targets[LABELS == 0]) == {0, 9} and set(after.targets[LABELS == 9]) == {0, 9}
    alone = corruptions.superclass_noise(a_dataset(superclasses=tuple(range(K))), 3, 0.5)
    np.testing.assert_array_equal(alone.targets, LABELS)


def test_arrays_may_come_with_superclasses():
    images = np.zeros((4, 2, 2, 3), np.uint8)
    splits = {"train": (images, [0, 1, 2, 2]), "test": (images, [0, 1, 2, 2])}
    made = dataset.from_arrays("made", {**splits, "superclasses": np.array([0, 0, 1])})
    assert made.superclasses == (0, 0, 1) and dataset.from_arrays("made", splits).superclasses == ()
    for wrong, said in (([0, 1], r"got int64\[2\]"), ([0.0, 1.0, 2.0], r"got float64\[3\]")):
        message = rf"made: superclasses must be int\[3\], one for each class, {said}"
        with pytest.raises(InputError, match=message):
            dataset.from_arrays("made", {**splits, "superclasses": wrong})
    with pytest.raises(InputError, match="class_names, mirror, taken_for and superclasses"):
        dataset.from_arrays("made", {**splits, "supercategories": [0, 0, 1]})


def test_step_imbalance_divides_the_last_classes():
    counts = corruptions.step_counts(np.full(10, 5000), 100.0, 0.5)
    np.testing.assert_array_equal(counts, [5000] * 5 + [50] * 5)  # Cao et al.
    np.testing.assert_array_equal(
        corruptions.step_counts(np.array([9, 8, 7, 6, 0]), 2.0, 0.5), [9, 8, 3, 3, 0]
    )
    for share, last in ((0.01, 1), (0.1, 1), (0.25, 3), (0.3, 3), (0.99, 9)):
        counts = corruptions.step_counts(np.full(10, 4), 100.0, share)
        np.testing.assert_array_equal(counts, [4] * (10 - last) + [1] * last)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_step_imbalance_is_nested_and_paired_with_other_thinning(share):
    before = a_dataset()
    chosen = [
        set(corruptions.step_imbalance(before, 5, factor, share).positions)
        for factor in (2.0, 8.0, 50.0)
    ]
    assert chosen[2] < chosen[1] < chosen[0] < set(before.positions)
    # Of two draws of a seed, the one that keeps fewer images of a class is in the other.
    last = LABELS == K - 1
    tail = corruptions.long_tail(before, 5, 20.0).positions
    tail = set(tail[last[tail]])
    halved = {position for position in chosen[0] if last[position]}
    assert 0 < len(tail) < len(halved) and tail < halved


def test_long_tail_is_exponential():
    counts = corruptions.class_counts(np.full(10, 5000), 1.0, 100.0)
    assert counts[0] == 5000 and counts[-1] == 50 and list(counts) == sorted(counts, reverse=True)
    np.testing.assert_allclose(counts[1:] / counts[:-1], 100 ** (-1 / 9), rtol=0.01)
    assert counts.sum() == 12406  # CIFAR-10-LT(100) of Cui et al.
    np.testing.assert_array_equal(
        corruptions.class_counts(np.full(10, 5000), 1.0, 1.0), np.full(10, 5000)
    )


def test_fraction_keeps_it_of_every_class():
    np.testing.assert_array_equal(
        corruptions.class_counts(np.array([100, 50, 3]), 0.1, 1.0), [10, 5, 1]
    )
    both = corruptions.class_counts(np.full(4, 1000), 0.5, 8.0)
    np.testing.assert_array_equal(both, [500, 250, 125, 62])


def test_subsets_are_nested_exact_and_drawn_by_the_seed():
    pool = np.flatnonzero(np.random.default_rng(1).random(N) < 0.9)
    small, large = np.full(K, 20), np.full(K, 50)
    chosen = corruptions.choose(LABELS, pool, small, seed=5)
    assert list(chosen) == sorted(set(chosen)) and set(chosen) <= set(pool)
    np.testing.assert_array_equal(np.bincount(LABELS[chosen], minlength=K), small)
    assert set(chosen) <= set(corruptions.choose(LABELS, pool, large, seed=5))
    assert len(set(chosen) & set(corruptions.choose(LABELS, pool, small, seed=6))) < 20


def a_dataset(**fields):
    """Ten classes, a few images of which are held out."""
    images = np.zeros((N, 2, 2, 3), np.uint8)
    made = dataset.from_arrays(
        "made", {"train": (images, LABELS), "test": (images[:K], LABELS[:K])}
    )
    own = np.flatnonzero(np.random.default_rng(1).random(N) < 0.9)
    labels = fields.pop("labels", LABELS)
    return dataclasses.replace(made, labels=labels, targets=labels, positions=own, **fields)


def test_label_noise_changes_the_targets_alone():
    before = a_dataset()
    after = corruptions.label_noise(before, 3, 0.4)
    np.testing.assert_array_equal(after.targets, corruptions.symmetric_noise(LABELS, 0.4, K, 3))
    assert changed(before, after) == ["targets"]
    np.testing.assert_array_equal(after.class_counts(), before.class_counts())


def test_asymmetric_label_noise_follows_the_data_set():
    plain = corruptions.label_noise(a_dataset(), 3, 0.4, "asymmetric")
    assert set(np.unique((plain.targets - LABELS) % K)) == {0, 1}
    paired = corruptions.label_noise(a_dataset(taken_for={2: 5}), 3, 0.4, kind="asymmetric")
    wrong = paired.targets != LABELS
    assert set(LABELS[wrong]) == {2} and set(paired.targets[wrong]) == {5}
    # The same images err
    np.testing.assert_array_equal(wrong, (plain.targets != LABELS) & (LABELS == 2))
    with pytest.raises(
        InputError, match="unknown kind of label noise 'symetric': did you mean 'symmetric'"
    ):
        corruptions.label_noise(a_dataset(), 3, 0.4, "symetric")


@pytest.mark.parametrize(
    ("corrupt", "arguments", "wanted"),
    [
        ("long_tail", {"factor": 8.0}, lambda counts: corruptions.class_counts(counts, 1.0, 8.0)),
        ("fraction", {"share": 0.5}, lambda counts: corruptions.class_counts(counts, 0.5, 1.0)),
        ("step_imbalance", {"factor": 8.0}, lambda n: corruptions.step_counts(n, 8.0, 0.5)),
    ],
)
def test_thinning_chooses_among_what_there_is(corrupt, arguments, wanted):
    before = a_dataset()
    after = corruptions.CORRUPTIONS[corrupt](before, 5, **arguments)
    counts = wanted(before.class_counts())
    np.testing.assert_array_equal(after.class_counts(), counts)
    np.testing.assert_array_equal(
        after.positions, corruptions.choose(LABELS, before.positions, counts, 5)
    )
    assert changed(before, after) == ["positions"]
    other = corruptions.CORRUPTIONS[corrupt](before, 6, **arguments)
    np.testing.assert_array_equal(other.class_counts(), counts)
    assert set(other.positions) != set(after.positions)


def test_corruptions_follow_one_another():
    """A tail is cut by the right labels, whatever labels are wrong."""
    before = a_dataset()
    noisy_first = corruptions.long_tail(corruptions.label_noise(before, 1, 0.4), 1, 4.0)
    noisy_last = corruptions.label_noise(corruptions.long_tail(before, 1, 4.0), 1, 0.4)
    np.testing.assert_array_equal(noisy_first.positions, noisy_last.positions)
    np.testing.assert_array_equal(noisy_first.targets, noisy_last.targets)
    twice = corruptions.fraction(corruptions.long_tail(before, 1, 4.0), 1, 0.5)
    np.testing.assert_array_equal(
        twice.class_counts(),
        corruptions.class_counts(corruptions.long_tail(before, 1, 4.0).class_counts(), 0.5, 1.0),
    )


def test_labels_of_one_class_cannot_be_wrong():
    with pytest.raises(InputError, match="has one class: no label of it can be wrong"):
        corruptions.label_noise(a_dataset(class_names=("all",)), 0, rate=0.2)
