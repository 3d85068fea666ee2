import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser

from bids_dl import bundle, training
from bids_dl import cohort as cohorts
from bids_dl.errors import DataError, MissingInputError, UsageError
from bids_dl.fusions.postfusion import fuse
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

N = 24
SPLIT = Split(np.arange(0, 14), np.arange(14, 18), np.arange(18, 24), "final")
SETTINGS = Settings(n_epochs=2, n_members=2, device="cpu", remove_confounds=True)
KINDS = ("linear", "mlp", "fusion")
MONAI_KEYS = {"version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors", "copyright",
              "network_data_format"}  # fmt: skip


def cohort(levels=("control", "patient")):
    generator = np.random.default_rng(0)
    y = generator.permutation(np.arange(N) % len(levels)) if levels else generator.normal(50, 10, N)
    shapes = {"edges": (45,), "columns": (6,), "confounds": (2,)}
    features = {k: Block(generator.normal(size=(N, *s)).astype(np.float32), ("column",)) for k, s in shapes.items()}
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(N)]})
    return Cohort(people, features, Target("target", y.astype(float), levels))


def fit(kind, data):
    def one(model, feature):
        definition = training.define(model, [data.features[feature].shape], data.target.n_outputs, {})
        return training.train(definition, data, SPLIT, [feature], SETTINGS)

    if kind == "fusion":
        return fuse([one("mlp", "edges"), one("mlp", "columns")], data, SPLIT, SETTINGS)
    return one(kind, "edges")


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """A folder, the model that was saved in it, and the cohort."""
    data = cohort()
    fitted = fit(request.param, data)
    folder = tmp_path_factory.mktemp("bundles") / request.param
    return bundle.save(fitted, folder, {"participants": ["abc"]}), fitted, data


@pytest.fixture
def one(tmp_path):
    """A bundle that a test may spoil."""
    return bundle.save(fit("linear", cohort()), tmp_path / "one", {})


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_bundle_holds_no_pickle(saved):
    folder, _, _ = saved
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".safetensors", ".md"}
    assert all(p.read_bytes()[8:9] == b"{" for p in files if p.suffix == ".safetensors")


def test_loaded_bundle_predicts_the_same(saved):
    folder, fitted, data = saved
    scores = training.predict(bundle.load(folder), data, SPLIT.test)
    np.testing.assert_allclose(scores, training.predict(fitted, data, SPLIT.test), atol=1e-6)
    assert all(
        torch.equal(v, fitted.module.state_dict()[k]) for k, v in bundle.load(folder).module.state_dict().items()
    )


def test_fresh_process_predicts_the_same(saved, tmp_path):
    folder, fitted, data = saved
    np.savez(tmp_path / "x.npz", **{k: b.values for k, b in data.features.items()})
    code = f"""
import numpy as np, pandas as pd
from bids_dl import bundle, training
from bids_dl.records import Block, Cohort, Target
from pathlib import Path
features = {{k: Block(v, ("column",)) for k, v in np.load(r"{tmp_path / "x.npz"}").items()}}
people = pd.DataFrame({{"participant_id": [str(i) for i in range({N})]}})
new = Cohort(people, features, Target("target", np.full({N}, np.nan)))
np.save(r"{tmp_path / "scores.npy"}", training.predict(bundle.load(Path(r"{folder}")), new, np.arange(18, 24)))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), training.predict(fitted, data, SPLIT.test), atol=1e-6)


def test_quantity_keeps_its_unit(tmp_path):
    data = cohort(())
    fitted = fit("mlp", data)
    fitted = replace(fitted, calibration=replace(fitted.calibration, slope=1.7, offset=-0.2))
    again = bundle.load(bundle.save(fitted, tmp_path / "age", {}))
    assert (again.target_mean, again.target_scale) == (fitted.target_mean, fitted.target_scale)
    raw = training.outputs(fitted, data, SPLIT.test)
    expected = (1.7 * raw - 0.2) * fitted.target_scale + fitted.target_mean
    np.testing.assert_allclose(training.predict(again, data, SPLIT.test), expected, rtol=1e-6)


def test_metadata_has_what_monai_asks_for(saved):
    folder, fitted, _ = saved
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert set(metadata) >= MONAI_KEYS
    formats = metadata["network_data_format"]
    assert set(formats["inputs"]) == set(fitted.inputs)
    keys = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"}
    assert all(set(f) >= keys for f in [*formats["inputs"].values(), *formats["outputs"].values()])
    assert metadata["bids_dl"]["participants"] == ["abc"]


def test_monai_reads_both_configurations_and_rebuilds_the_network(saved):
    folder, fitted, _ = saved
    parser = ConfigParser()
    parser.read_meta(str(folder / "configs" / "metadata.json"))
    parser.read_config(str(folder / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in fitted.module.state_dict().items()
    }
    network.load_state_dict(fitted.module.state_dict())
    x = [torch.randn(2, *fitted.normalization[name].mean.shape) for name in fitted.inputs]
    torch.testing.assert_close(network.eval()(*x), fitted.module(*x))


def test_bundle_says_how_to_use_it(saved):
    folder, _, _ = saved
    assert f"--bundle {folder.name}" in (folder / "docs" / "README.md").read_text()


def test_saving_again_replaces_the_bundle_and_leaves_nothing_beside_it(one):
    fitted = fit("mlp", cohort())
    assert bundle.save(fitted, one, {}) == one
    assert bundle.load(one).definition == fitted.definition
    assert [p.name for p in one.parent.iterdir()] == ["one"]


def test_interrupted_saving_leaves_the_old_bundle(one):
    with pytest.raises(TypeError):
        bundle.save(fit("mlp", cohort()), one, {"features": object()})
    assert bundle.load(one).definition["_target_"].endswith("Affine")


def test_newer_format_is_refused(one):
    edit(one / "configs" / "metadata.json", lambda m: m["bids_dl"].update(format=bundle.FORMAT + 1))
    with pytest.raises(
        DataError, match=rf"newer bids_dl \(format {bundle.FORMAT + 1}, this one reads {bundle.FORMAT}\)"
    ):
        bundle.load(one)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingInputError, match="nowhere is no bundle"):
        bundle.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "file",
    ["configs/metadata.json", "configs/inference.json", "models/model.safetensors", "models/normalization.safetensors"],
)
def test_damaged_file_is_named(one, file):
    (one / file).write_bytes((one / file).read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{file} ends early or is damaged"):
        bundle.load(one)


def test_bundle_of_another_program_is_refused(one):
    edit(one / "configs" / "metadata.json", lambda m: m.pop("bids_dl"))
    with pytest.raises(DataError, match="MONAI bundle that bids_dl did not write"):
        bundle.load(one)


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "torch.load"])
def test_definition_outside_of_the_package_is_refused(one, target):
    edit(one / "configs" / "inference.json", lambda c: c["network_def"].update(_target_=target))
    with pytest.raises(UsageError, match=f"names '{target}', which is not part of bids_dl"):
        bundle.load(one)


def test_hidden_definition_outside_of_the_package_is_refused(one):
    hidden = {"_target_": "bids_dl.training.Ensemble", "members": [{"_target_": "os.system", "command": "true"}]}
    edit(one / "configs" / "inference.json", lambda c: c.update(network_def=hidden))
    with pytest.raises(UsageError, match=r"names 'os\.system'"):
        bundle.load(one)


def test_participant_is_recognised_by_name_and_by_features():
    data = cohort()
    known = bundle.trained_on(data, [3, 4], ["edges"], "my dataset")
    assert len(known) == 4
    assert bundle.identity("my dataset", "sub-03") in known
    assert cohorts.fingerprint(data.features["edges"].values[4]) in known
    assert bundle.identity("other dataset", "sub-03") not in known
    assert cohorts.fingerprint(data.features["edges"].values[5]) not in known


def test_hashes_do_not_name_anybody():
    assert not any("sub-03" in h for h in bundle.trained_on(cohort(), [3], ["edges"], "my dataset"))


def test_absent_features_have_no_fingerprint():
    data = cohort()
    data.features["edges"].values[[3, 4]] = np.nan
    assert len(bundle.trained_on(data, [3, 4], ["edges"], "my dataset")) == 2


def test_fingerprint_does_not_see_the_sign_of_nothing():
    values = np.array([0.25, 1e-7, np.nan])
    assert cohorts.fingerprint(values) == bundle.fingerprint(values * [1, -1, 1])
    assert cohorts.fingerprint(values) == bundle.fingerprint(values.astype(np.float32))
    assert cohorts.fingerprint(values) != bundle.fingerprint(values + 0.01)
