"""Networks: read, put on a grid, found by group ICA; what a template cannot be used for is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import AFFINE, write_description, write_image

from bids_dl import cli, config, derivatives, networks, query
from bids_dl.errors import DataError, MissingInputError, UsageError
from bids_dl.records import Scan

SHAPE = (9, 11, 9)
INSIDE = networks.brain(SHAPE, AFFINE)


def parts(n: int, seed: int = 0) -> np.ndarray:
    """Make sparse maps that share no voxel, each a tenth of the brain, (x, y, z, network)."""
    generator = np.random.default_rng(seed)
    owner = generator.integers(0, 10, SHAPE)
    return np.stack([(owner == k) * generator.uniform(0.5, 1, SHAPE) for k in range(n)], axis=-1) * INSIDE[..., None]


@pytest.fixture
def bolds(tmp_path: Path) -> Callable[..., dict[str, list[Scan]]]:
    """Paint the same maps with other courses into each participant's BOLD."""

    def make(maps: np.ndarray, n: int = 3, *, spaces: tuple[str, ...] = ("MNI152Lin",), n_volumes: int = 60):
        found = {}
        for k in range(n):
            generator = np.random.default_rng(k)
            courses = generator.laplace(size=(maps.shape[3], n_volumes))
            values = 1000 + maps @ courses + generator.standard_normal((*SHAPE, n_volumes))
            name = f"sub-{k + 1}_task-rest_space-{spaces[k % len(spaces)]}_desc-preproc_bold.nii.gz"
            path = write_image(tmp_path / f"sub-{k + 1}" / "func" / name, values.astype(np.float32))
            found[f"sub-{k + 1}"] = [Scan(path, query.entities(path), tmp_path)]
        return found

    return make


def test_group_ica_finds_the_maps_that_were_painted(bolds, tmp_path: Path) -> None:
    maps = parts(4)
    path = networks.fit(bolds(maps), tmp_path / "out", n_components=4, smoothing_mm=0)
    found = nib.load(path).get_fdata()
    r = np.corrcoef(maps[INSIDE].T, found[INSIDE].T)[:4, 4:]
    assert r.max(axis=1).min() > 0.9
    assert set(r.argmax(axis=1)) == {0, 1, 2, 3}
    assert np.allclose(found[INSIDE].std(axis=0), 1, atol=1e-3)
    assert not found[~INSIDE].any()


def test_equal_seeds_give_equal_maps_and_the_sidecar_says_on_whom(bolds, tmp_path: Path) -> None:
    mine = bolds(parts(3))
    one, two = (networks.fit(mine, tmp_path / f"out{k}", n_components=3, random_seed=7) for k in range(2))
    assert one.name == "atlas-ICA3_space-MNI152Lin_probseg.nii.gz"
    assert np.array_equal(nib.load(one).get_fdata(), nib.load(two).get_fdata())
    said = json.loads(one.with_name("atlas-ICA3_space-MNI152Lin_probseg.json").read_text())
    assert said["FittedOn"] == ["sub-1", "sub-2", "sub-3"]
    assert said["RandomSeed"] == 7
    assert said["NumberOfStartsNotConverged"] <= said["NumberOfStarts"] == 10
    assert "nilearn" in said["Software"]
    assert networks.load(str(one)).labels == ("ICA01", "ICA02", "ICA03")
    assert networks.load(str(one)).name == "ICA3"
    assert networks.fitted(tmp_path / "out0", 3) == one
    assert networks.fitted(tmp_path / "out0", 30) is None


def test_the_longer_tail_of_a_component_is_positive() -> None:
    one = np.r_[np.full(90, 0.1), np.full(9, -1.0), 2.0]
    found = networks.oriented(np.stack([one, -one]))
    assert np.array_equal(found[0], found[1])
    assert (found[0] ** 3).mean() > 0
    assert np.allclose(found.mean(axis=1), 0)
    assert np.allclose(found.std(axis=1), 1)


def test_bolds_of_several_spaces_are_refused(bolds, tmp_path: Path) -> None:
    mine = bolds(parts(2), 2, spaces=("MNI152Lin", "MNI152NLin6Asym"))
    with pytest.raises(DataError, match="several spaces .MNI152Lin, MNI152NLin6Asym."):
        networks.fit(mine, tmp_path / "out", n_components=2)


def test_a_run_with_fewer_volumes_than_networks_is_named(bolds, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sub-1_task-rest.* has 12 volumes for 20 networks"):
        networks.fit(bolds(parts(2), 2, n_volumes=12), tmp_path / "out", n_components=20)


def test_a_damaged_run_is_left_out_and_named(bolds, tmp_path: Path) -> None:
    mine = bolds(parts(3), 4)
    alone = networks.fit({i: s for i, s in mine.items() if i != "sub-2"}, tmp_path / "alone", n_components=3)
    damaged = mine["sub-2"][0].path
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    found = networks.fit(mine, tmp_path / "out", n_components=3)
    assert np.array_equal(nib.load(found).get_fdata(), nib.load(alone).get_fdata())
    said = json.loads(found.with_name("atlas-ICA3_space-MNI152Lin_probseg.json").read_text())
    assert said["FittedOn"] == ["sub-1", "sub-3", "sub-4"]
    assert said["LeftOutAsDamaged"] == [damaged.name]


def test_nobody_with_a_whole_bold_is_said(bolds, tmp_path: Path) -> None:
    mine = bolds(parts(2), 2)
    for (scan,) in mine.values():
        scan.path.write_bytes(scan.path.read_bytes()[: scan.path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"every BOLD is damaged, such as sub-1_task-rest"):
        networks.fit(mine, tmp_path / "out", n_components=2)


def test_nobody_with_a_bold_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the participants"):
        networks.fit({"sub-1": []}, tmp_path / "out", n_components=2)


def test_maps_are_interpolated_to_another_grid(tmp_path: Path) -> None:
    x, y, z = (np.arange(n, dtype=np.float32) for n in SHAPE)
    ramp = x[:, None, None] + 10 * y[None, :, None] + 100 * z
    template = networks.load(str(write_image(tmp_path / "ramp.nii", np.stack([ramp, 2 * ramp], axis=-1))))
    shifted = AFFINE.copy()
    shifted[:3, 3] += 10
    found = networks.on_grid(template, SHAPE, shifted)
    assert np.allclose(found[2, 3, 4], [(2.5 + 35 + 450), 2 * (2.5 + 35 + 450)])
    assert not found[-1].any()


def test_networks_are_named_by_the_table_beside_them_or_numbered(tmp_path: Path) -> None:
    path = write_image(tmp_path / "my_nets.nii.gz", np.ones((2, 2, 2, 2)))
    assert networks.load(str(path)) == networks.Networks("MyNets", path, ("network01", "network02"))
    (tmp_path / "my_nets.tsv").write_text("index\tname\n1\tdefault\n2\tvisual\n")
    assert networks.load(str(path)).labels == ("default", "visual")


@pytest.mark.parametrize(
    ("shape", "table", "message"),
    [
        ((2, 2, 2), "", "has 3 dimensions"),
        ((2, 2, 2, 3), "index\tname\n1\tdefault\n", "names 1 networks for 3 maps"),
        (None, "", "does not exist"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(tmp_path: Path, shape, table: str, message: str) -> None:
    path = tmp_path / "nets.nii.gz"
    if shape:
        write_image(path, np.ones(shape))
    if table:
        (tmp_path / "nets.tsv").write_text(table)
    with pytest.raises((DataError, MissingInputError), match=message) as problem:
        networks.load(str(path))
    assert "nets" in str(problem.value)


def run(data: Path, out: Path, *more: object, level: str = "participant") -> int:
    return cli.main([str(data), str(out), level, "--nprocs", "1", "--skip-bids-validation", *map(str, more)])


def settings(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text)
    return path


ICA = '[features]\nnames = ["connectivity"]\n[networks]\nn_components = 2\nsmoothing_mm = 0.0\n'


def test_networks_are_fitted_once_and_each_participant_has_its_own(fmriprep, tmp_path: Path) -> None:
    data, out = fmriprep(3, n_volumes=120), tmp_path / "out"
    assert run(data, out, "--config-file", settings(tmp_path, ICA)) == 0
    stem = "sub-02_task-rest_space-MNI152NLin2009cAsym_atlas-ICA2"
    written = {p.name for p in (out / "sub-02" / "func").glob("*[!n]")}
    assert written == {
        f"{stem}_stat-dualregression_timeseries.tsv",
        f"{stem}_stat-pearsoncorrelation_desc-fisherz_relmat.tsv",
        f"{stem}_stat-dualregression_boldmap.nii.gz",
    }
    assert nib.load(out / "sub-02" / "func" / f"{stem}_stat-dualregression_boldmap.nii.gz").shape == (9, 11, 9, 2)
    maps = networks.fitted(out, 2)
    before = maps.stat().st_mtime_ns
    assert run(data, out, "--config-file", settings(tmp_path, ICA)) == 0
    assert maps.stat().st_mtime_ns == before


def test_networks_fitted_on_a_list_serve_others_too(fmriprep, tmp_path: Path) -> None:
    data, out = fmriprep(3, n_volumes=120), tmp_path / "out"
    given = settings(tmp_path, ICA + 'participants = ["01", "sub-02"]\n')
    assert run(data, out, "--config-file", given) == 0
    said = json.loads(
        networks.fitted(out, 2).with_name("atlas-ICA2_space-MNI152NLin2009cAsym_probseg.json").read_text()
    )
    assert said["FittedOn"] == ["sub-01", "sub-02"]
    assert len(list(out.rglob("*_boldmap.nii.gz"))) == 3
    for path in out.rglob("sub-03*_boldmap.nii.gz"):
        path.unlink()
    (out / "logs" / "participants" / "sub-03.json").unlink()
    assert run(data, out, "--config-file", given, "--participant-label", "03") == 0
    assert len(list(out.rglob("*_boldmap.nii.gz"))) == 3


def test_other_participants_are_refused_beside_networks_of_the_first(fmriprep, tmp_path: Path, capsys) -> None:
    data, out = fmriprep(3, n_volumes=120), tmp_path / "out"
    given = settings(tmp_path, ICA)
    assert run(data, out, "--config-file", given, "--participant-label", "01", "02") == 0
    assert run(data, out, "--config-file", given) == 73
    assert "fitted on 2 participants, other than the 3" in capsys.readouterr().err
    assert run(data, out, "--config-file", given, "--overwrite") == 0
    assert len(list(out.rglob("*_boldmap.nii.gz"))) == 3


def test_an_unknown_participant_to_fit_on_is_named(fmriprep, tmp_path: Path, capsys) -> None:
    given = settings(tmp_path, ICA + 'participants = ["sub-04"]\n')
    assert run(fmriprep(3, n_volumes=120), tmp_path / "out", "--config-file", given) == 18
    assert "networks.participants: 'sub-04' is not in this run" in capsys.readouterr().err


def test_networks_that_cannot_be_fitted_are_said_and_other_features_go_on(fmriprep, tmp_path: Path, capsys) -> None:
    data, out = fmriprep(1), tmp_path / "out"
    given = settings(tmp_path, ICA.replace('"connectivity"', '"alff"').replace("= 2", "= 50"))
    assert run(data, out, "--config-file", given) == 1
    assert "40 volumes for 50 networks" in capsys.readouterr().err
    assert list(out.rglob("*_stat-alff_boldmap.nii.gz"))
    assert "no networks to look for" in (out / "logs" / "problems.tsv").read_text()


def test_networks_without_a_template_are_refused_at_once(fmriprep, tmp_path: Path, capsys) -> None:
    given = settings(tmp_path, '[features]\nnames = ["dual_regression"]\n')
    assert run(fmriprep(1), tmp_path / "out", "--config-file", given) == 64
    assert "features.dual_regression.template" in capsys.readouterr().err


def test_connectomes_follow_the_networks_of_a_template(fmriprep, tmp_path: Path) -> None:
    template = write_image(tmp_path / "nets.nii.gz", np.random.default_rng(0).random((*SHAPE, 3)).astype(np.float32))
    text = f'[features]\nnames = ["connectivity", "dual_regression"]\ndual_regression.template = "{template}"\n'
    out = tmp_path / "out"
    assert run(fmriprep(1), out, "--config-file", settings(tmp_path, text)) == 0
    assert [query.entities(p)["atlas"] for p in out.rglob("*_relmat.tsv")] == ["Nets"]


def test_one_network_is_refused_and_a_template_is_kept_by_its_full_path(tmp_path: Path, monkeypatch) -> None:
    given = {"bids_dir": "data", "output_dir": "out", "analysis_level": "participant"}
    with pytest.raises(UsageError, match="networks.n_components"):
        config.from_mapping({**given, "networks": {"n_components": 1}})
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "nets.nii", np.ones((2, 2, 2, 2)))
    asked = config.from_mapping({**given, "features": {"network_maps": {"template": "nets.nii"}}})
    assert config.absolute(asked).features.of("network_maps")["template"] == str(tmp_path / "nets.nii")


MOVING = """
[features]
names = ["dynamic_network_maps", "network_maps"]
{options}
[models]
names = ["cnn_ica"]
[models.cnn_ica]
n_sources = 2
width = 2
n_blocks = 1
n_cells = 1
n_pretraining = 3
[explainers]
names = ["integrated_gradients", "occlusion"]
[splits]
n_folds = 2
[training]
n_epochs = 1
n_members = 1
[metrics]
n_bootstraps = 20
n_permutations = 20
n_retrained = -1
"""
MODEL = "dynamic_network_maps_cnn_ica"


def with_moving_maps(fmriprep, root: Path) -> tuple[Path, str]:
    """Write 16 participants, the first of whom has three windows and the others two, and what to do with them."""
    data = fmriprep(16, n_volumes=60)
    people = pd.read_csv(data / "participants.tsv", sep="\t").assign(diagnosis=["control", "patient"] * 8)
    people.to_csv(data / "participants.tsv", sep="\t", index=False)
    longer = next(data.rglob("sub-01*_desc-preproc_bold.nii.gz"))
    write_image(longer, 500 + 10 * np.random.default_rng(9).standard_normal((*SHAPE, 100)).astype(np.float32))
    template = write_image(root / "atlas-Nets_probseg.nii.gz", parts(3).astype(np.float32))
    common = f'template = "{template}", confounds = "none", high_pass_hz = 0.0, low_pass_hz = 0.0, resolution_mm = 18.0'
    options = f"dynamic_network_maps = {{ {common}, window_s = 60.0, step_s = 60.0 }}\nnetwork_maps = {{ {common} }}"
    return data, settings(root, MOVING.format(options=options))


def test_maps_that_move_are_modelled_parcellated_explained_and_predicted_from(fmriprep, tmp_path: Path) -> None:
    data, given = with_moving_maps(fmriprep, tmp_path)
    out, new = tmp_path / "out", tmp_path / "new"
    assert run(data, out, "--config-file", given) == 0
    assert run(data, out, "--config-file", given, "--target", "diagnosis", level="group") == 0
    predicted = pd.read_csv(out / "group" / "predictions" / f"target-diagnosis_model-{MODEL}_predictions.tsv", sep="\t")
    assert len(predicted) == 16
    assert (out / "group" / "predictions" / "target-diagnosis_model-network_maps_linear_predictions.tsv").is_file()
    for number in range(1, 17):
        n_windows = 3 if number == 1 else 2
        ((segmented, components),) = zip(
            *(sorted((out / f"sub-{number:02d}").rglob(f"*_desc-DiagnosisDynamicNetworkMapsCnnIca_{end}.nii.gz"))
              for end in ("probseg", "components")), strict=True,
        )  # fmt: skip
        image = nib.load(segmented)
        assert image.shape == nib.load(components).shape == (5, 6, 5, n_windows, 2)
        assert image.header.get_zooms()[:4] == (36, 36, 36, 60)
        shares = image.get_fdata().sum(axis=4)
        inside = shares[..., 0] > 0
        np.testing.assert_allclose(shares, np.broadcast_to(inside[..., None], shares.shape), atol=1e-5)
        said = query.read_json(derivatives.sidecar_path(segmented))
        assert said["Dimensions"] == ["x", "y", "z", "window", "source"]
        assert said["WindowOnsets"] == [0, 60, 120][:n_windows]
        whole = next((out / f"sub-{number:02d}").rglob("*_desc-DiagnosisNetworkMapsCnnIca_probseg.nii.gz"))
        assert nib.load(whole).shape == (5, 6, 5, 2)
    stem = out / "group" / "explanations" / f"target-diagnosis_model-{MODEL}_feature-dynamic_network_maps"
    for method in ("occlusion", "integratedgradients"):
        assert nib.load(f"{stem}_desc-{method}_maps.nii.gz").shape == (10, 12, 10, 3)
        assert nib.load(f"{stem}_desc-{method}_statmap.nii.gz").shape == (10, 12, 10)
    parted = pd.read_csv(out / "group" / "descriptions" / f"target-diagnosis_model-{MODEL}_maps.tsv", sep="\t")
    assert parted.columns.tolist() == ["network", "source1", "source2"]
    page = (out / "sub-01.html").read_text()
    assert "etwork maps in windows" in page
    assert "cannot be shown" not in page
    assert "the first of 3 windows" in page
    assert "the first of 3 networks" in page
    bundle = out / "group" / "bundles" / f"target-diagnosis_model-{MODEL}"
    again = fmriprep(2, seed=5, n_volumes=130)
    write_description(again, Name="other people")
    assert run(again, new, "--config-file", given, "--bundle", bundle, "--participant-label", "01", "02") == 0
    scores = pd.read_csv(new / "phenotype" / f"{bundle.name}.tsv", sep="\t")
    assert scores["y_score"].notna().all()
    assert len(list(new.rglob(f"*{derivatives.word(bundle.name)}*_statmap.nii.gz"))) == 4
