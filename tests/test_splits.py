import numpy as np
import pytest

from bids_dl import splits
from bids_dl.config import Splits
from bids_dl.errors import DataError, MissingInputError
from bids_dl.records import Split, Target

N = 40
IDS = [f"sub-{n:02d}" for n in range(N)]
FAMILIES = [f"family-{n // 2}" for n in range(N)]
SITES = ["north", "south", "east"] * 13 + ["north"]
CLASSES = Target("diagnosis", np.repeat([0.0, 1.0], [28, 12])[np.random.default_rng(0).permutation(N)], ("hc", "mdd"))
AGE = Target("age", np.random.default_rng(1).uniform(20, 80, N))


def made(target=CLASSES, *, seed=0, groups=(), sites=(), **settings):
    return splits.make(target, IDS, Splits(**settings), seed=seed, groups=groups, sites=sites)


def training_side(split):
    return np.concatenate([split.train, split.validation])


def same(one, other):
    parts = splits.PARTS
    return one.name == other.name and all(np.array_equal(getattr(one, p), getattr(other, p)) for p in parts)


@pytest.mark.parametrize("target", [CLASSES, AGE], ids=["classes", "quantity"])
def test_everybody_is_tested_once_a_repeat(target):
    made_splits = made(target, n_folds=4, n_repeats=2)
    assert [s.name for s in made_splits[:2]] == ["repeat-1_fold-1", "repeat-1_fold-2"]
    for repeat in (made_splits[:4], made_splits[4:]):
        assert sorted(np.concatenate([s.test for s in repeat])) == list(range(N))
    for split in made_splits:
        assert sorted([*training_side(split), *split.test]) == list(range(N))


def test_each_fold_has_its_share_of_each_class():
    for split in made(n_folds=4):
        assert CLASSES.values[split.test].sum() == 3
        assert CLASSES.values[split.validation].sum() in (1, 2)


def test_each_fold_of_a_quantity_sees_its_range():
    for split in made(AGE, n_folds=4):
        assert np.ptp(AGE.values[split.test]) > 30


def test_repeats_differ():
    first, *_, last = made(n_folds=4, n_repeats=2)
    assert not np.array_equal(first.test, last.test)


def test_same_seed_gives_the_same_splits_and_another_seed_others():
    assert all(map(same, made(seed=3), made(seed=3)))
    assert not all(map(same, made(seed=3), made(seed=4)))


@pytest.mark.parametrize("target", [CLASSES, AGE], ids=["classes", "quantity"])
def test_families_stay_in_one_part(target):
    for split in made(target, groups=FAMILIES):
        parts = [{FAMILIES[row] for row in getattr(split, part)} for part in splits.PARTS]
        assert not parts[0] & parts[1]
        assert not (parts[0] | parts[1]) & parts[2]
        assert all(parts)


def test_each_site_is_left_out_once():
    made_splits = made(kind="leave-site-out", sites=SITES)
    assert [s.name for s in made_splits] == ["site-east", "site-north", "site-south"]
    for split in made_splits:
        site = split.name.removeprefix("site-")
        assert {SITES[row] for row in split.test} == {site}
        assert site not in {SITES[row] for row in training_side(split)}
        assert len(split.test) == SITES.count(site)


def test_validation_part_holds_all_training_sites():
    split = made(kind="leave-site-out", sites=SITES)[0]
    assert {SITES[row] for row in split.validation} == {"north", "south"}


def test_family_over_two_sites_is_named_when_a_site_is_left_out():
    with pytest.raises(DataError, match="group 'family-"):
        made(kind="leave-site-out", sites=SITES, groups=FAMILIES)


def test_site_with_a_slash_gives_a_name_that_a_folder_can_have():
    sites = ["a/b", "c"] * (N // 2)
    assert {s.name for s in made(kind="leave-site-out", sites=sites)} == {"site-a-b", "site-c"}


def test_people_without_the_target_take_part_in_nothing():
    values = CLASSES.values.copy()
    values[[3, 17]] = np.nan
    for split in [*made(Target("diagnosis", values, CLASSES.levels)), splits.final(CLASSES, IDS, Splits(), seed=0)][:5]:
        assert not {3, 17} & {*training_side(split), *split.test}


def test_final_split_trains_on_everybody():
    split = splits.final(CLASSES, IDS, Splits(), seed=0, groups=FAMILIES)
    assert sorted(training_side(split)) == list(range(N))
    assert not len(split.test)
    assert not {FAMILIES[r] for r in split.train} & {FAMILIES[r] for r in split.validation}


RANKS = Target(
    "severity", np.repeat([0.0, 1, 2, 3], [N // 2, N // 4, N // 8, N - N // 2 - N // 4 - N // 8]), ranks=tuple("abcd")
)


def shares(rows):
    return np.bincount(RANKS.values[rows].astype(int), minlength=4)


def test_every_part_holds_its_share_of_every_rank_however_its_values_are_scaled():
    for split in made(RANKS, n_folds=3):
        np.testing.assert_allclose(shares(split.test), shares(np.arange(N)) / 3, atol=1)
        scaled = (RANKS.values - 0.9) / 1.3
        for _, held in splits.inner(split, scaled, is_class=False, n_parts=2, seed=0, ranks=RANKS.ranks):
            np.testing.assert_allclose(shares(held), shares(split.pool) / 2, atol=1)


def test_rank_of_one_participant_is_tested_once_and_refused_nowhere():
    single = Target("severity", np.r_[2.0, np.arange(N - 1) % 2], ranks=("a", "b", "c"))
    assert sum(0 in split.test for split in made(single)) == 1


@pytest.mark.parametrize("groups", [(), FAMILIES], ids=["alone", "families"])
@pytest.mark.parametrize("is_class", [True, False], ids=["classes", "quantity"])
def test_inner_parts_hold_no_test_row_and_keep_families(groups, is_class):
    target = CLASSES if is_class else AGE
    for split in made(target, groups=groups):
        parts = splits.inner(split, target.values, is_class=is_class, n_parts=4, seed=0)
        held = np.concatenate([validation for _, validation in parts])
        assert sorted(held) == sorted(training_side(split))
        for train, validation in parts:
            assert sorted([*train, *validation]) == sorted(training_side(split))
            if groups:
                assert not {groups[r] for r in train} & {groups[r] for r in validation}


@pytest.mark.parametrize("is_class", [True, False], ids=["classes", "quantity"])
def test_test_labels_change_no_inner_part(is_class):
    target = CLASSES if is_class else AGE
    split = made(target)[0]
    altered = target.values.copy()
    altered[split.test] = 1 - altered[split.test] if is_class else altered[split.test] * 100
    one, other = (splits.inner(split, y, is_class=is_class, n_parts=5, seed=0) for y in (target.values, altered))
    assert all(np.array_equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True))


def test_one_inner_part_is_the_splits_own():
    split = made()[0]
    ((train, validation),) = splits.inner(split, CLASSES.values, is_class=True, n_parts=1, seed=0)
    assert train is split.train
    assert validation is split.validation


def test_few_families_give_few_inner_parts():
    families = ["a", "b", "c", "d"] * (N // 4)
    split = made(AGE, groups=families, n_folds=2, validation_fraction=0.5)[0]
    assert len(splits.inner(split, AGE.values, is_class=False, n_parts=5, seed=0)) == 2


def written(tmp_path, made_splits):
    path = tmp_path / "splits.tsv"
    splits.to_table(made_splits, IDS).to_csv(path, sep="\t", index=False)
    return path


@pytest.mark.parametrize("settings", [{"n_repeats": 2}, {"kind": "leave-site-out", "sites": SITES}])
def test_saved_splits_are_read_back_equal(tmp_path, settings):
    made_splits = made(**settings)
    path = written(tmp_path, made_splits)
    assert all(map(same, splits.read(path, IDS, CLASSES), made_splits))
    one = splits.read_one(path, made_splits[-1].name, IDS, CLASSES, sites=settings.get("sites", ()))
    assert same(one, made_splits[-1])


def test_saved_splits_serve_fewer_participants(tmp_path):
    path = written(tmp_path, made())
    fewer = Target("diagnosis", CLASSES.values[:20], CLASSES.levels)
    for split, whole in zip(splits.read(path, IDS[:20], fewer), made(), strict=True):
        assert split.test.tolist() == [row for row in whole.test if row < 20]


def test_saved_split_without_validation_gets_one(tmp_path):
    path = tmp_path / "splits.tsv"
    cells = ["test" if n % 4 == 0 else "train" for n in range(N)]
    path.write_text("participant_id\tmine\n" + "".join(f"{i}\t{c}\n" for i, c in zip(IDS, cells, strict=True)))
    (split,) = splits.read(path, IDS, CLASSES)
    assert split.test.tolist() == list(range(0, N, 4))
    assert 0 < len(split.validation) < len(split.train)


def test_saved_split_may_leave_the_prefix_of_participants_out_as_participants_tsv_may(tmp_path):
    path = written(tmp_path, made())
    path.write_text(path.read_text().replace("sub-", ""))
    for split, whole in zip(splits.read(path, IDS, CLASSES), made(), strict=True):
        np.testing.assert_array_equal(split.test, whole.test)


def test_saved_split_with_a_family_on_both_sides_is_refused(tmp_path):
    path = written(tmp_path, made())
    with pytest.raises(DataError, match="group 'family-"):
        splits.read(path, IDS, CLASSES, groups=FAMILIES)


def test_saved_split_with_a_site_on_both_sides_is_refused(tmp_path):
    path = written(tmp_path, made())
    with pytest.raises(DataError, match="site '(north|south|east)' is in train and in test"):
        splits.read(path, IDS, CLASSES, sites=SITES)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("participant_id\tone\nsub-00\ttrain\nsub-01\tsometimes\n", "'sometimes' is none of train, validation, test"),
        ("participant_id\tone\nsub-00\ttrain\nsub-00\ttest\n", "names nobody twice"),
        ("who\tone\nsub-00\ttrain\n", "needs a column participant_id"),
        ("participant_id\tone\nsub-00\ttrain\nsub-01\ttrain\n", "column one: no participant with 'diagnosis'"),
    ],
)
def test_broken_table_is_refused(tmp_path, text, reason):
    path = tmp_path / "splits.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        splits.read(path, IDS, CLASSES)


def test_missing_table_and_missing_column_are_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"nowhere\.tsv does not exist"):
        splits.read(tmp_path / "nowhere.tsv", IDS, CLASSES)
    with pytest.raises(DataError, match="has no split 'fold-9'; it has repeat-1_fold-1"):
        splits.read_one(written(tmp_path, made()), "fold-9", IDS, CLASSES)


def test_class_smaller_than_the_folds_is_named():
    values = np.zeros(N)
    values[:4] = 1
    with pytest.raises(DataError, match="class 'rare' has 4 participants, and 5 folds need 6; lower splits.n_folds"):
        made(Target("diagnosis", values, ("common", "rare")))


def test_too_few_participants_to_train_validate_and_test_are_counted_at_once():
    three = Target("age", np.r_[30.0, 40, 50, np.full(N - 3, np.nan)])
    with pytest.raises(DataError, match="target 'age': 3 participants have it and a feature; at least 6 are needed"):
        made(three, n_folds=2)
    six = Target("age", np.r_[np.arange(6.0), np.full(N - 6, np.nan)])
    with pytest.raises(
        DataError, match="split repeat-1_fold-1: 2 .* tested, 1 stop the training, and 3 are left to train on"
    ):
        made(six, n_folds=3)
    assert len(made(six, n_folds=6)[0].train) == splits.FEWEST


def test_too_few_families_are_counted():
    with pytest.raises(DataError, match="2 groups for 5 folds"):
        made(groups=["a", "b"] * (N // 2))


def test_too_few_sites_are_counted():
    with pytest.raises(DataError, match="1 sites for 2 folds"):
        made(kind="leave-site-out", sites=["only"] * N)


def test_site_that_holds_a_whole_class_is_refused():
    sites = ["clinic" if y else "school" for y in CLASSES.values]
    with pytest.raises(DataError, match="split site-clinic: nobody of class 'mdd' is left to train on"):
        made(kind="leave-site-out", sites=sites)


def test_one_family_left_to_train_on_is_refused():
    with pytest.raises(DataError, match="of one group cannot be divided"):
        made(AGE, groups=["a", "b"] * (N // 2), n_folds=2)


@pytest.mark.parametrize("levels", [("a", "b", "c"), ()])
def test_parts_of_a_split_are_nested_stratified_and_blind_to_the_test_rows(levels):
    generator = np.random.default_rng(0)
    values = generator.permutation(np.repeat([0.0, 1, 1, 2], 30)) if levels else generator.normal(size=120)
    split = Split(np.arange(0, 64), np.arange(64, 80), np.arange(80, 120), "one")
    altered = values.copy()
    altered[split.test] = values[split.test][::-1] if levels else 1000
    larger = split
    for fraction in (0.5, 0.25, 0.125):
        part, blind = (splits.part_of(split, Target("y", v, levels), fraction, seed=3) for v in (values, altered))
        assert (len(part.train), len(part.validation)) == (64 * fraction, 16 * fraction)
        assert set(part.train) < set(larger.train)
        assert set(part.validation) < set(larger.validation)
        assert all(np.array_equal(getattr(part, p), getattr(blind, p)) for p in splits.PARTS)
        assert np.array_equal(part.test, split.test)
        for level in range(len(levels)):
            share = (values[split.train] == level).mean()
            assert abs((values[part.train] == level).sum() - share * len(part.train)) <= 1
        larger = part


def test_rows_without_a_site_and_test_rows_of_sites_not_trained_on_are_left_out():
    split = Split(np.array([0, 1]), np.array([2]), np.array([3, 4, 5, 6]), "one")
    left = splits.of_known_sites(split, ["a", "", "b", "a", "b", "c", ""])
    assert [part.tolist() for part in (left.train, left.validation, left.test)] == [[0], [2], [3, 4]]


def test_first_round_tests_nobody_twice():
    repeats = splits.make(CLASSES, IDS, Splits(n_folds=3, n_repeats=2), seed=0)
    assert [s.name for s in splits.first_round(repeats)] == [f"repeat-1_fold-{k}" for k in (1, 2, 3)]
