"""A raw dwi gives the tensor that was planted, in its own and in standard space, and what cannot is named."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write_description
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_dl import cli, derivatives, extraction, query, registration, simulate
from bids_dl.errors import DataError
from bids_dl.preparations import dwi
from bids_dl.records import Scan

EDGE_MM = 6.0
TURN = Rotation.from_rotvec([0.05, -0.04, 0.1]).as_matrix()
AFFINE = np.array([[-EDGE_MM, 0, 0, 96], [0, EDGE_MM, 0, -114], [0, 0, EDGE_MM, -90], [0, 0, 0, 1.0]])
BALL_MM = (-26, -20, 28)
SHAPE = (34, 40, 32)
FA, MD = 0.7, 0.75e-3
N_DIRECTIONS = 9


def directions(n: int = N_DIRECTIONS) -> np.ndarray:
    """Spread directions over the sphere along a spiral."""
    z = 1 - (2 * np.arange(n) + 1) / n
    turn = np.pi * (1 + np.sqrt(5)) * np.arange(n)
    return np.column_stack([np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z])


def eigenvalues(fa: float, md: float) -> np.ndarray:
    """Solve for a tensor that is round about its axis, with a given anisotropy and mean."""
    excess = fa / np.sqrt(3 - 2 * fa**2)
    return md * np.array([1 + 2 * excess, 1 - excess, 1 - excess])


@cache
def brain() -> tuple[np.ndarray, np.ndarray]:
    """Turn and shrink the template: its brain, and its white matter but for a ball on the left."""
    template = simulate.anatomy(4)
    to_template = np.eye(4)
    to_template[:3, :3], to_template[:3, 3] = 1.08 * TURN, (4, -5, 8)
    matrix = np.linalg.inv(template.affine) @ to_template @ AFFINE
    at = np.stack(np.indices(template.brain.shape), axis=-1) @ template.affine[:3, :3].T + template.affine[:3, 3]
    left_out = np.linalg.norm(at - BALL_MM, axis=-1) < 16
    inside, white = (
        ndimage.affine_transform(part.astype(float), matrix[:3, :3], matrix[:3, 3], output_shape=SHAPE, order=1) > 0.5
        for part in (template.brain, template.white * ~left_out)
    )
    return inside, white & inside


def signal(gradients: np.ndarray, bvals: np.ndarray, axis: tuple[float, ...] = (0, 1, 0)) -> np.ndarray:
    """Decay by the planted tensors, (x, y, z, volume); gradients are along the world's axes."""
    inside, bar = brain()
    along, across, _ = eigenvalues(FA, MD)
    projected = (gradients @ np.array(axis)) ** 2
    white = np.exp(-bvals * (across + (along - across) * projected))
    texture = 1 + 0.1 * np.sin(np.indices(SHAPE).sum(axis=0) / 2.0)
    volumes = np.where(bar[..., None], 600 * white, 1000 * np.exp(-bvals * 0.9e-3))
    return (volumes * texture[..., None] * inside[..., None]).astype(np.float32)


def scan_of(
    volumes: np.ndarray, root: Path, bvals: np.ndarray, gradients: np.ndarray, affine: np.ndarray = AFFINE
) -> Scan:
    """Write a raw dwi, whose gradients are along FSL's axes."""
    stem = root / "sub-01" / "dwi" / "sub-01_dwi"
    stem.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volumes, affine), f"{stem}.nii.gz")
    along = gradients @ (affine[:3, :3] / EDGE_MM)
    if np.linalg.det(affine[:3, :3]) > 0:
        along[:, 0] *= -1
    np.savetxt(f"{stem}.bval", bvals[None], fmt="%d")
    np.savetxt(f"{stem}.bvec", along.T, fmt="%.6f")
    path = stem.with_name("sub-01_dwi.nii.gz")
    related = {end: Path(f"{stem}.{end}") for end in ("bval", "bvec")}
    return Scan(path, query.entities(path), root, prepared=False, related=related)


def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gradients = np.vstack([np.zeros((2, 3)), directions()])
    bvals = np.append([0, 0], np.full(N_DIRECTIONS, 1000))
    noise = np.random.default_rng(0).normal(0, 10, (*SHAPE, len(bvals)))
    return np.maximum(signal(gradients, bvals) + noise, 0).astype(np.float32), bvals, gradients


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Scan]:
    def make(**changed: np.ndarray) -> Scan:
        volumes, bvals, gradients = planted()
        given = {"volumes": volumes, "bvals": bvals, "gradients": gradients, **changed}
        return scan_of(given["volumes"], tmp_path_factory.mktemp("raw"), given["bvals"], given["gradients"])

    return make


@pytest.fixture(scope="module")
def out(raw: Callable[..., Scan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run level 1 once on the planted brain, without a T1w, on a coarse grid."""
    scan, folder = raw(), tmp_path_factory.mktemp("out")
    write_description(scan.dataset)
    (folder / "c.toml").write_text(
        "[preparations.dwi]\nresolution_mm = 4\n[features.structural_connectivity]\nn_seeds = 5000\n"
    )
    asked = ["--features", "fa", "md", "structural_connectivity", "--config-file", str(folder / "c.toml")]
    command = [str(scan.dataset), str(folder / "out"), "participant", "--nprocs", "1", "--skip-bids-validation"]
    assert cli.main([*command, *asked]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def done(out: Path) -> list[Scan]:
    """Return what the preparation gave."""
    noted = query.read_json(out / "logs" / "preparations" / "sub-01_dwi.json")
    return [extraction.unpacked(one) for one in noted["scans"]]


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, np.float32)


def deep_in_bar(image_path: Path) -> np.ndarray:
    """Tell which voxels of an image in the scan's own space lie well inside the planted bar."""
    image = nib.load(image_path)
    _, bar = brain()
    to_planted = np.linalg.inv(AFFINE) @ image.affine
    eroded = ndimage.binary_erosion(bar).astype(float)
    moved = ndimage.affine_transform(
        eroded, to_planted[:3, :3], to_planted[:3, 3], output_shape=image.shape[:3], order=0
    )
    return moved > 0.5


def test_planted_anisotropy_and_diffusivity_are_recovered_within_five_per_cent(done: list[Scan]) -> None:
    related = done[0].related
    deep = deep_in_bar(related["fa_native"])
    assert deep.sum() > 20
    assert np.median(values(related["fa_native"])[deep]) == pytest.approx(FA, rel=0.05)
    assert np.median(values(related["md_native"])[deep]) == pytest.approx(MD, rel=0.05)


def test_maps_reach_standard_space_as_scans_of_their_own(done: list[Scan]) -> None:
    scan, fa, md = done
    assert [s.kind for s in done] == ["dwi", "dwimap", "dwimap"] and all(s.prepared for s in done)
    assert fa.path.name == "sub-01_space-MNI152NLin2009aSym_model-tensor_param-fa_dwimap.nii.gz"
    assert (fa.path, md.path) == (scan.related["fa"], scan.related["md"])
    assert values(fa.path).shape == values(md.path).shape == values(fa.mask).shape
    assert query.sidecar(md.path, md.dataset)["Units"] == "mm^2/s"


def test_white_matter_meets_that_of_the_template_on_either_side(done: list[Scan]) -> None:
    template, fa = simulate.anatomy(4), values(done[1].path)
    assert fa.shape == template.white.shape
    assert np.corrcoef(fa[template.brain], template.white[template.brain])[0, 1] > 0.7
    left, right = (
        fa[tuple(np.rint(np.linalg.inv(template.affine) @ (x, *BALL_MM[1:], 1)).astype(int)[:3])] for x in (-26, 26)
    )
    assert left < 0.3 < 0.6 < right
    overlap = (values(done[1].mask) > 0) & template.brain
    assert 2 * overlap.sum() > 0.93 * (values(done[1].mask).sum() + template.brain.sum())


def test_every_feature_of_diffusion_is_written_from_the_raw_dwi(out: Path) -> None:
    record = query.read_json(out / "logs" / "participants" / "sub-01.json")
    assert {f["feature"] for f in record["features"]} == {"fa", "md", "structural_connectivity"}
    assert not any(f["prepared"] for f in record["features"]) and not record["problems"]
    [preparation] = record["preparations"]
    assert preparation["kind"] == "dwi" and len(preparation["also"]) == 2


def dwimap(param: str, ses: str = "") -> Scan:
    entities = {"sub": "01", "suffix": "dwimap", "param": param} | ({"ses": ses} if ses else {})
    return Scan(Path(f"sub-01_param-{param}_dwimap.nii.gz"), entities, Path("qsirecon"))


def test_a_raw_dwi_is_wanted_for_its_maps_and_gives_way_to_those_of_a_derivative() -> None:
    raw = Scan(Path("sub-01_dwi.nii.gz"), {"sub": "01", "suffix": "dwi"}, Path("raw"), prepared=False)
    assert extraction._is_wanted(raw, {"dwimap"}) and extraction._is_wanted(raw, {"dwi"})
    assert not extraction._is_wanted(raw, {"bold"})
    assert extraction._is_given(dwimap("fa"), [raw, dwimap("fa")])
    assert not extraction._is_given(dwimap("md"), [raw, dwimap("fa")])
    assert not extraction._is_given(dwimap("fa", "2"), [raw, dwimap("fa", "1")])


def test_an_image_in_standard_space_comes_back_to_where_it_was(done: list[Scan]) -> None:
    import ants

    related = done[0].related
    files, inverted = registration.read_transforms(related["from_standard"])
    there, here = nib.load(done[1].path), nib.load(related["fa_native"])
    back = ants.apply_transforms(
        registration.to_ants(registration.Volume(values(related["fa_native"]), here.affine)),
        registration.to_ants(registration.Volume(values(done[1].path), there.affine)),
        [str(f) for f in files], whichtoinvert=list(inverted),
    ).numpy()  # fmt: skip
    inside = values(related["mask_native"]) > 0
    assert np.corrcoef(back[inside], values(related["fa_native"])[inside])[0, 1] > 0.8


def test_written_gradients_fit_the_written_volumes(done: list[Scan]) -> None:
    related = done[0].related
    again = dwi.load(Scan(related["dwi_native"], done[0].entities, done[0].dataset, related=related))
    world = again.directions @ (again.affine[:3, :3] / EDGE_MM).T
    assert np.abs((world[2:] * directions()).sum(axis=1)).min() > 0.995


def test_gradients_follow_the_axes_of_either_handedness(tmp_path: Path) -> None:
    volumes, bvals, gradients = planted()
    left = dwi.load(scan_of(volumes, tmp_path / "left", bvals, gradients))
    right_affine = AFFINE @ np.diag([-1, 1, 1, 1])
    right = dwi.load(scan_of(volumes, tmp_path / "right", bvals, gradients, right_affine))
    for one in (left, right):
        assert np.allclose(one.directions, gradients, atol=1e-5)


def test_a_turned_head_is_turned_back_with_its_directions(tmp_path: Path) -> None:
    _, bvals, gradients = planted()
    turn = Rotation.from_rotvec([0, 0, 0.12]).as_matrix()
    still = signal(gradients, bvals)
    turned = signal(gradients @ turn, bvals)  # a head turned by R sees the gradient R⁻¹ g
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = turn, (3, -2, 0)
    for t in range(8, len(bvals)):
        still[..., t] = dwi._resampled(turned[..., t], AFFINE, np.linalg.inv(moved))
    noisy = np.maximum(still + np.random.default_rng(1).normal(0, 10, still.shape), 0).astype(np.float32)
    data = dwi.load(scan_of(noisy, tmp_path, bvals, gradients))
    mask = nib.as_closest_canonical(nib.Nifti1Image(brain()[0].astype(np.uint8), AFFINE)).get_fdata() > 0
    corrected, moved_mm = dwi.without_motion(data, mask)
    assert 1 < moved_mm < 6
    apart = np.degrees(
        np.arccos(np.clip(np.abs((corrected.directions[8:] @ turn.T * gradients[8:]).sum(axis=1)), 0, 1))
    )
    assert np.median(apart) < 1.5
    image = tmp_path / "fa.nii.gz"
    fa = dwi.tensor_maps(corrected, mask)["fa"]
    nib.save(nib.Nifti1Image(fa, data.affine), image)
    deep = deep_in_bar(image)
    assert np.median(fa[deep]) == pytest.approx(FA, rel=0.05)


def test_a_volume_too_faint_to_align_moves_as_its_neighbour() -> None:
    gradients, bvals = np.vstack([np.zeros((1, 3)), directions(2)]), np.array([0.0, 1000.0, 3000.0])
    volumes = signal(gradients, bvals)
    moved = np.eye(4)
    moved[:3, 3] = (4, 0, 0)
    volumes[..., 1] = dwi._resampled(volumes[..., 1], AFFINE, np.linalg.inv(moved))
    volumes[..., 2] = np.random.default_rng(0).random(SHAPE)
    still, found, faint = dwi.movements(dwi.Diffusion(volumes, AFFINE, bvals, gradients))
    assert np.array_equal(still, np.eye(4)) and np.array_equal(found, faint)
    assert np.allclose(found[:3, 3], (4, 0, 0), atol=1)


def test_noise_is_removed_and_the_decay_stays() -> None:
    volumes, bvals, gradients = planted()
    truth, mask = signal(gradients, bvals), brain()[0]
    data = dwi.Diffusion(volumes, AFFINE, bvals.astype(float), gradients)
    clean = dwi.without_noise(data, mask).volumes
    before, after = (np.sqrt(((v - truth)[mask] ** 2).mean()) for v in (volumes, clean))
    assert after < 0.7 * before


def test_a_corrected_dwi_keeps_its_volumes(raw: Callable[..., Scan], tmp_path: Path) -> None:
    scan = raw()
    related = {end: scan.path.with_name(f"sub-01_desc-preproc_dwi.{end}") for end in ("bval", "bvec")}
    path = scan.path.rename(scan.path.with_name("sub-01_desc-preproc_dwi.nii.gz"))
    for role, place in scan.related.items():
        place.rename(related[role])
    derivatives.write_description(tmp_path, {"bids": scan.dataset})
    kept = dwi.prepare(
        Scan(path, query.entities(path), scan.dataset, prepared=False, related=related), None, tmp_path, resolution_mm=6
    )
    before = nib.as_closest_canonical(nib.load(path)).get_fdata()
    after = values(kept[0].related["dwi_native"])
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99999


def test_the_way_through_the_t1w_is_taken_where_there_is_one(raw: Callable[..., Scan], tmp_path: Path) -> None:
    inside, bar = brain()
    derivatives.write_description(tmp_path, {"bids": tmp_path})
    native, identity = tmp_path / "native.nii.gz", tmp_path / "identity.txt"
    nib.save(nib.Nifti1Image((inside * 500 + bar * 400).astype(np.float32), AFFINE), native)
    identity.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n"
    )
    files = {
        role: derivatives.write_json(
            tmp_path / f"{role}.json", {"Transforms": [identity.name], "Invert": [role[0] == "f"]}
        )
        for role in ("to_standard", "from_standard")
    }
    anatomy = Scan(native, {"sub": "01", "suffix": "T1w"}, tmp_path, related={"native": native, **files})
    scan = raw()
    derivatives.write_description(tmp_path, {"bids": scan.dataset})
    found = dwi.prepare(scan, anatomy, tmp_path, resolution_mm=6, correct_motion=False, denoise=False)
    image = nib.load(found[1].path)
    white = np.argwhere(values(found[1].path) > 0.55) @ image.affine[:3, :3].T + image.affine[:3, 3]
    planted_at = (np.argwhere(bar) @ AFFINE[:3, :3].T + AFFINE[:3, 3]).mean(axis=0)
    assert np.allclose(white.mean(axis=0), planted_at, atol=4)
    transforms, inverted = registration.read_transforms(found[0].related["from_standard"])
    assert [t.is_file() for t in transforms] == [True, True] and inverted == (True, True)
    assert "through the T1w" in found[0].why


def cut(scan: Scan) -> Scan:
    scan.path.write_bytes(gzip.compress(gzip.decompress(scan.path.read_bytes()))[:5000])
    return scan


def without(scan: Scan, role: str) -> Scan:
    return Scan(scan.path, scan.entities, scan.dataset, related={r: p for r, p in scan.related.items() if r != role})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda raw: raw(bvals=np.zeros(7)), "11 volumes, but 7 b-values and 11 directions"),
        (lambda raw: raw(gradients=np.tile(directions(), (2, 1))), "11 b-values and 18 directions"),
        (lambda raw: raw(bvals=np.full(11, 1000)), "no volume with b=0"),
        (lambda raw: raw(gradients=np.vstack([np.zeros((6, 3)), directions(5)])), "5 independent directions"),
        (lambda raw: raw(gradients=planted()[2] * [1, 1, 0]), "3 independent directions"),
        (lambda raw: raw(volumes=np.ones(SHAPE, np.float32)), "3 dimensions"),
        (lambda raw: raw(volumes=np.zeros((*SHAPE, 11), np.float32)), "same value in every voxel"),
        (lambda raw: cut(raw()), "ends early or is damaged"),
        (lambda raw: without(raw(), "bvec"), "no .bvec file"),
        (lambda raw: raw(volumes=planted()[0] * (np.indices(SHAPE)[0] < 8)[..., None]), "mL"),
    ],
)  # fmt: skip
def test_an_unusable_dwi_is_named_with_its_reason(
    raw: Callable[..., Scan], tmp_path: Path, spoil: Callable[..., Scan], said: str
) -> None:
    with pytest.raises(DataError, match=said) as refusal:
        dwi.prepare(spoil(raw), None, tmp_path)
    assert str(refusal.value).startswith("sub-01_dwi")


def test_a_cube_of_tissue_is_no_brain_but_its_tensor_is_plausible(tmp_path: Path) -> None:
    from dipy.data import get_fnames

    image, bval, bvec = (Path(p) for p in get_fnames(name="small_64D"))
    path = tmp_path / "sub-01_dwi.nii.gz"
    nib.save(nib.load(image), path)
    scan = Scan(path, query.entities(path), tmp_path, prepared=False, related={"bval": bval, "bvec": bvec})
    with pytest.raises(DataError, match="does it cover a whole brain"):
        dwi.prepare(scan, None, tmp_path)
    maps = dwi.tensor_maps(dwi.load(scan), np.ones((10, 10, 10), bool))
    assert 0.6 < np.percentile(maps["fa"], 99) < 1 and 0.5e-3 < np.median(maps["md"]) < 1.2e-3
