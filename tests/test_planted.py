import lesions
import mixture
import numpy as np
import planted
import pytest

from bids_dl import zoo

SOLVED = [*planted.SOLUTIONS.values(), *planted.OTHERS.values()]
PROBLEMS = list(dict.fromkeys(solution.problem for solution in SOLVED))
REFERENCES = {"linear", "confounds_only", "dummy"}


def test_every_model_but_the_references_has_a_problem():
    assert set(planted.SOLUTIONS) == set(zoo.names("models")) - REFERENCES


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.words)
def test_problem_is_the_same_with_its_seed_and_another_with_another(problem):
    one, again, other = (problem.draw(seed=seed) for seed in (1, 1, 2))
    values = [next(iter(data.features.values())).values for data in (one, again, other)]
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(one.target.values, again.target.values)
    assert values[0].shape != values[2].shape or not np.array_equal(values[0], values[2], equal_nan=True)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.words)
def test_usual_value_does_not_differ_between_classes_on_average(problem):
    """Over several draws, no value's difference of means is larger than chance lets the largest of so many be."""
    sides = ([], [])
    for seed in range(3):
        data = problem.draw(seed=seed)
        usual = problem.usual(next(iter(data.features.values()))).values.reshape(len(data.participants), -1)
        for label, side in enumerate(sides):
            side.append(usual[data.target.values == label])
    one, other = (np.concatenate(side).astype(float) for side in sides)
    error = np.sqrt(one.var(axis=0) / len(one) + other.var(axis=0) / len(other))
    assert (np.abs(one.mean(axis=0) - other.mean(axis=0)) / error).max() < 5.5


@pytest.mark.parametrize("scattered", [False, True])
def test_middle_of_the_volumes_is_as_bright_where_lesions_overlap_most(scattered):
    data, _ = lesions.cohort(n=1200, size=12, edge=4, scattered=scattered)
    middle = data.features["volume"].values[:, 3:9, 3:9, 3:9].mean(axis=(1, 2, 3))
    one, other = (middle[data.target.values == label] for label in (0, 1))
    assert abs(one.mean() - other.mean()) < 4 * np.sqrt(one.var() / len(one) + other.var() / len(other))


def test_halves_share_nobody_and_leave_nobody_out():
    split = planted.halves(50)
    assert sorted([*split.train, *split.validation, *split.test]) == list(range(50))


def test_generative_models_have_a_mixture_to_learn():
    assert set(mixture.LEARNED) <= set(planted.SOLUTIONS)
