"""A raw T1w becomes a brain in standard space: brain extraction, bias, registration, tissues, modulated grey matter."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from bids_dl import derivatives
from bids_dl import registration as reg
from bids_dl.errors import DataError
from bids_dl.records import Scan
from bids_dl.registration import Transforms, Volume

BRAIN_ML = (500.0, 2100.0)
"""Smallest and largest plausible volume inside the skull."""

N_STEPS = 3
"""Steps of the segmentation. Five fitted the intensities closer and DLMUSE's segmentations of three heads less."""

TISSUES = {"csf": "CSF", "gm": "GM", "wm": "WM"}


def prepare(
    scan: Scan, anatomy: Scan | None, out: Path, *, resolution_mm: int = 2, working_mm: float = 1.5,
    prior_weight: float = 0.25,
) -> Scan:  # fmt: skip
    """Extract the brain [1]_, correct its bias, register it to the template and segment its tissues [2]_.

    Parameters
    ----------
    scan
        A raw T1w, with its skull or without: an image that is already stripped is recognised and left as it is.
    anatomy
        Not used.
    out
        The output folder; everything is written there as BIDS derivatives.
    resolution_mm
        Edge of a voxel of the images in standard space.
    working_mm
        Edge of a voxel on which the brain is registered and segmented.
    prior_weight
        How much the template's tissue maps count beside the intensities, from 0 to 1.

    Returns
    -------
    Scan
        The brain in standard space, with its mask and, by role, ``gm``, ``wm``, ``csf`` (probabilities), ``modulated``,
        ``volumes`` (mL, JSON), ``raw`` and ``native`` (the head, and the brain, as scanned), ``to_standard`` and
        ``from_standard`` (JSON lists of the transforms that ANTs applies).

    Raises
    ------
    DataError
        If the image is damaged, is no single volume, or no brain of a plausible size is found in it.

    References
    ----------
    .. [1] Fisch et al. (2024), Computers in Biology and Medicine 179. doi:10.1016/j.compbiomed.2024.108845
    .. [2] Avants et al. (2011), Neuroinformatics 9(4). doi:10.1007/s12021-011-9109-y
    """
    head = reg.load(scan)
    mask, stripped = _brain_mask(scan, head)
    template = reg.template(resolution_mm)
    with tempfile.TemporaryDirectory() as folder:
        brain = reg.correct_bias(head.like(head.values * mask.values), mask)
        grid = reg.grid_around(mask, working_mm)
        small, inside = reg.resample(brain, grid), reg.resample(mask, grid, nearest=True)
        transforms = reg.deform(small, template.brain, Path(folder))
        tissues = _segment(small, inside, template, transforms, prior_weight)
        written = _Written(scan, out, resolution_mm, skull_stripped=stripped)
        return written.all(brain, mask, tissues, template, transforms)


def _brain_mask(scan: Scan, head: Volume) -> tuple[Volume, bool]:
    """Find the brain; an image that holds nothing else keeps all that it holds."""
    stripped = _is_stripped(head)
    inside = head.values > 0 if stripped else _extract(head)
    inside = ndimage.binary_fill_holes(reg.largest_part(inside))
    size = float(inside.sum() * head.voxel_ml)
    if not BRAIN_ML[0] <= size <= BRAIN_ML[1]:
        raise DataError(
            f"{scan.name}: what was taken for the brain measures {size:.0f} mL, not {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f}; "
            "look at the image: is it a T1w of a whole head, or of a brain?"
        )
    return head.like(inside.astype(np.float32)), stripped


def _is_stripped(head: Volume) -> bool:
    """Tell whether most of the image is empty, and what is not has the size of a brain in one piece."""
    filled = head.values > 0
    size = float(filled.sum() * head.voxel_ml)
    return (
        filled.mean() < 0.5
        and BRAIN_ML[0] <= size <= BRAIN_ML[1]
        and reg.largest_part(filled).sum() > 0.98 * filled.sum()
    )


def _extract(head: Volume) -> Any:
    """Run deepbet's network, whose weights lie in its package."""
    from deepbet.bet import BrainExtraction

    network = BrainExtraction(no_gpu=True)
    try:
        return network.postprocess(network.run_model(head.values.copy()) > 0.5) > 0
    except (AssertionError, RuntimeError, ValueError):  # nothing in it looks like a brain
        return np.zeros(head.values.shape, bool)


def _segment(
    brain: Volume, mask: Volume, template: reg.Template, transforms: Transforms, prior_weight: float
) -> dict[str, Volume]:
    """Give each voxel its probability of CSF, grey and white matter (Atropos, from the template's maps).

    Deep nuclei are nearly as bright as white matter: they are a class of their own while intensities are learned, and where
    they lie counts in full, whatever the weight of the other maps.
    """
    import ants

    expected = {
        t: reg.resample(getattr(template, t), brain, transforms.backward, inverted=transforms.inverted()).values
        for t in (*TISSUES, "nuclei")
    }
    full = 1 / max(prior_weight, 0.05)  # Atropos raises all maps to the power of their weight
    deep, elsewhere = expected["nuclei"].clip(0, 1) ** full, (1 - expected["nuclei"]).clip(0, 1) ** full
    priors = [*(expected[t] * elsewhere for t in TISSUES), deep * (1 - expected["csf"]).clip(0)]
    found = ants.atropos(
        reg.to_ants(brain), reg.to_ants(mask), i=[reg.to_ants(brain.like(p)) for p in priors], m="[0.1,1x1x1]",
        c=f"[{N_STEPS},0]", priorweight=prior_weight,
    )["probabilityimages"]  # fmt: skip
    csf, cortex, wm, nuclei = (image.numpy() for image in found)
    return {"csf": brain.like(csf), "gm": brain.like(cortex + nuclei), "wm": brain.like(wm)}


class _Written:
    """Names and sidecars of everything that is left for the features, the report and other programs."""

    def __init__(self, scan: Scan, out: Path, resolution_mm: int, *, skull_stripped: bool) -> None:
        self.scan, self.out, self.resolution = scan, out, resolution_mm
        self.described = {"Sources": [derivatives.bids_uri(out, scan)], "WasSkullStripped": skull_stripped}

    def all(
        self, brain: Volume, mask: Volume, tissues: dict[str, Volume], template: reg.Template, transforms: Transforms
    ) -> Scan:
        """Write the brain in both spaces, its tissues, volumes and transforms."""
        moved = {n: reg.resample(v, template.mask, transforms.forward) for n, v in tissues.items()}
        change = reg.volume_change(transforms, template.mask)
        related = {n: self.standard(v, "probseg", label=TISSUES[n]) for n, v in moved.items()}
        modulated = template.mask.like(moved["gm"].values * change.values)
        related["modulated"] = self.standard(modulated, "probseg", label="GM", desc="modulated")
        related["native"] = self.native(_whole_numbers(brain), "T1w", desc="brain")
        self.native(mask.like(mask.values.astype(np.uint8)), "mask", desc="brain")
        related["raw"] = self.scan.path
        related["volumes"] = self.volumes(tissues, mask)
        related |= self.transforms(transforms)
        inside = reg.resample(mask, template.mask, transforms.forward).values > 0.5
        standard = reg.resample(brain, template.mask, transforms.forward).values * inside
        path = self.standard(template.mask.like(standard), "T1w", desc="preproc")
        held = self.standard(template.mask.like(inside.astype(np.uint8)), "mask", desc="brain")
        entities = {**self.scan.entities, "space": reg.SPACE, "desc": "preproc"}
        why = "prepared here from the raw scan" + (
            " (already skull-stripped)" if self.described["WasSkullStripped"] else ""
        )
        return replace(
            self.scan,
            path=path,
            entities=entities,
            dataset=self.out,
            prepared=True,
            mask=held,
            related=related,
            why=why,
        )

    def path(self, suffix: str, extension: str, **entities: str) -> Path:
        """Name a file of this participant and session."""
        named = {k: v for k, v in self.scan.entities.items() if k not in {"suffix", "datatype"}} | entities
        return derivatives.folder_of(self.out, self.scan) / "anat" / derivatives.name(named, suffix, extension)

    def standard(self, volume: Volume, suffix: str, **entities: str) -> Path:
        """Write an image in standard space."""
        resolution = f"{self.resolution} mm isotropic"
        path = self.path(suffix, ".nii.gz", space=reg.SPACE, res=str(self.resolution), **entities)
        return self._image(path, volume, {"Resolution": resolution, "SkullStripped": True})

    def native(self, volume: Volume, suffix: str, **entities: str) -> Path:
        """Write an image on the scan's own grid."""
        return self._image(self.path(suffix, ".nii.gz", **entities), volume, {"SkullStripped": True})

    def _image(self, path: Path, volume: Volume, more: dict[str, Any]) -> Path:
        derivatives.write_image(path, volume.values, volume.affine)
        derivatives.write_json(derivatives.sidecar_path(path), {**self.described, **more})
        return path

    def volumes(self, tissues: dict[str, Volume], mask: Volume) -> Path:
        """Write the volumes of the tissues and of all inside the mask, in mL."""
        content = {f"{n}_ml": float(v.values.sum() * v.voxel_ml) for n, v in tissues.items()}
        content["icv_ml"] = float(mask.values.sum() * mask.voxel_ml)
        return derivatives.write_json(self.path("volumes", ".json", desc="tissues"), content)

    def transforms(self, transforms: Transforms) -> dict[str, Path]:
        """Keep the transforms, and for either direction the list that ANTs applies."""
        kept = {}
        for number, name in enumerate(dict.fromkeys([*transforms.forward, *transforms.backward])):
            kind = "affine" if name.endswith(".mat") else "warp" if number == 0 else "inversewarp"
            entities = {"from": "T1w", "to": reg.SPACE, "mode": "image", "desc": kind}
            kept[name] = self.path("xfm", "".join(Path(name).suffixes[-2:]), **entities)
            derivatives.keep(name, kept[name])
        lists = {"to_standard": transforms.forward, "from_standard": transforms.backward}
        return {
            role: derivatives.write_json(
                self.path("xfm", ".json", **{"from": "T1w", "to": reg.SPACE, "mode": "image", "desc": role.replace("_", "")}),
                {"Transforms": [kept[n].name for n in names], "Invert": [role == "from_standard" and n.endswith(".mat") for n in names]},
            )
            for role, names in lists.items()
        }  # fmt: skip


def _whole_numbers(volume: Volume) -> Volume:
    """Store intensities as 16-bit numbers, the brightest per mille at 10,000: half the space, no visible loss."""
    top = float(np.percentile(volume.values[volume.values > 0], 99.9))
    return volume.like(np.clip(np.rint(volume.values * (10_000 / top)), 0, 32_767).astype(np.int16))
