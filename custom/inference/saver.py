"""Saving of translations on the source's own grid."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SaveImaged
from monai.utils import ImageMetaKey, convert_to_numpy

from custom.compat import in_label_server
from custom.data.names import NAME_KEY, PROVENANCE_KEY, image_stem, image_suffix, translation_name
from custom.data.nifti import is_nifti, load_header
from custom.data.readers import ASSUMED_KEY
from custom.inference.dicom_writer import save_synthetic_series
from custom.inference.inputs import check_output_format
from custom.inference.provenance import write_provenance
from custom.utils.files import atomic_write
from custom.utils.modalities import canonical

__all__ = ["DeclareSyntheticd", "SaveImageTranslationsd", "save_synthetic"]

logger = logging.getLogger(__name__)

BUNDLE = "brain_mri_modality_translation"
DESCRIPTION_BYTES = 79
LABEL_SUFFIX = "result_extension"  # of the temporary file that MONAI Label's writer makes
LABEL_PARAMETERS = "result"  # sent to its client beside the image
NIFTI_IMAGES = (nib.Nifti1Pair, nib.Nifti2Pair)


def description(target: str, bundle: str, version: str) -> str:
    """Description of a translation, for its metadata."""
    return f"SYNTHETIC {target} from {bundle} {version}".rstrip()


class DeclareSyntheticd(MapTransform):
    """Mark a prediction as synthetic for clients that write it themselves, since they drop ``SaveImageTranslationsd``.

    Its metadata's ``descrip`` says so, as a file's header would. The server of MONAI Label writes no metadata: there
    the name of the file that is sent ends with ``_<target>_synthetic``, and the parameters sent along say it too.

    Args:
        keys: key of the prediction (K, H, W, D).
        targets: names of the K channels, in order.
        bundle: name written into the description.
        version: version written into the description.
    """

    not_in_identity = ("target", "description")

    def __init__(
        self,
        keys: KeysCollection,
        targets: str | Sequence[str],
        *,
        bundle: str = BUNDLE,
        version: str = "",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        names = [canonical(t) for t in ([targets] if isinstance(targets, str) else targets)]
        self.target = "_".join(names)
        self.description = description(", ".join(names), bundle, f"v{version}" if version else "")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if isinstance(d[key], MetaTensor):
                d[key].meta["descrip"] = self.description
        if in_label_server():
            suffix = d.get(LABEL_SUFFIX) or image_suffix(d.get("image_path") or "")
            d[LABEL_SUFFIX] = f"{translation_name('', self.target)}{suffix}"
            said = {"synthetic": True, "description": self.description}
            d[LABEL_PARAMETERS] = {**(d.get(LABEL_PARAMETERS) or {}), **said}
        return d


class SaveImageTranslationsd(SaveImaged):
    """Write each channel of a prediction as ``<source>_<target>_synthetic.nii.gz``, or as a folder with a DICOM series.

    Clients that keep the result themselves drop it with MONAI's own: MONAI Label drops what derives from
    ``SaveImaged``, MONAI Deploy what has ``SaveImage`` in its name. ``<source>`` is the ``"name"`` of the item, as
    ``inference_inputs`` gives it, or else that of the file.

    Args:
        keys: key of the prediction (K, H, W, D) on the source's grid, with the source's metadata.
        output_dir: folder for the files; made where it does not exist.
        targets: names of the K channels, in order.
        bundle: name written into the file's description.
        version: version written into the file's description.
        output_format: ``nifti``, or ``dicom`` for sources that are DICOM: see ``custom.inference.dicom_writer``.

    Raises:
        ValueError: if the number of channels, the shape or the format does not fit the source.
    """

    # where and under which name, and MONAI's own saver, which is not used
    not_in_identity = ("output_dir", "targets", "bundle", "version", "saver")

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike,
        targets: str | Sequence[str],
        *,
        bundle: str = BUNDLE,
        version: str = "",
        output_format: str = "nifti",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, output_dir=Path(output_dir), allow_missing_keys=allow_missing_keys)
        self.output_dir = Path(output_dir).expanduser()
        self.targets = [canonical(t) for t in ([targets] if isinstance(targets, str) else targets)]
        self.bundle, self.version = bundle, f"v{version}" if version else ""
        self.output_format = check_output_format(output_format)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            prediction = d[key]
            source = str(prediction.meta[ImageMetaKey.FILENAME_OR_OBJ])
            name = str(d.get(NAME_KEY) or image_stem(source))
            if prediction.shape[0] != len(self.targets):
                raise ValueError(
                    f"{source}: expected {len(self.targets)} channels ({', '.join(self.targets)}) under {key!r}; "
                    f"found {prediction.shape[0]}. Give the saver the targets of the inferer."
                )
            for volume, target in zip(prediction, self.targets, strict=True):
                logger.info("wrote %s", self._save(volume, target, source, name, prediction.meta))
        return d

    def _save(self, volume: torch.Tensor, target: str, source: str, name: str, meta: Mapping[str, Any]) -> Path:
        name = translation_name(name, target)
        if self.output_format == "dicom":
            path = self.output_dir / name
            program = {"bundle": self.bundle, "version": self.version}
            save_synthetic_series(volume, path, source, target=target, number=self.targets.index(target) + 1, **program)
        else:
            path = self.output_dir / f"{name}.nii.gz"
            save_synthetic(volume, path, source, meta, description(target, self.bundle, self.version))
        return path


def save_synthetic(volume: torch.Tensor, path: Path, source: str, meta: Mapping[str, Any], description: str) -> None:
    """Write one volume as float32 NIfTI on its source's grid; the file appears whole or not at all.

    The header of a NIfTI source is kept (grid, qform and sform with their codes, units); of other formats, DICOM among
    them, the affine. Where the source does not say how its axes lie, neither does the result: its codes are 0, unknown.

    Args:
        volume: (H, W, D).
        path: of the file to write.
        source: file that the volume was made from.
        meta: its metadata as MONAI's readers give them; what they say of its provenance goes into the header.
        description: for the header's ``descrip``, cut to 79 bytes.
    """
    values = np.ascontiguousarray(convert_to_numpy(volume), dtype=np.float32)
    faulty = int((~np.isfinite(values)).sum())
    if faulty:
        raise ValueError(
            f"{source}: expected a translation of finite values; found {faulty} NaN or infinite voxels. "
            "Check the weights."
        )
    image = _like_source(values, source, meta)
    image.header.set_data_dtype(np.float32)
    image.header.set_slope_inter(1, 0)
    image.header["cal_min"], image.header["cal_max"] = 0, 0  # the source's display window does not fit [0, 1]
    description += "; orientation assumed" if meta.get(ASSUMED_KEY) else ""
    image.header["descrip"] = description.encode("ascii", "replace")[:DESCRIPTION_BYTES]
    if PROVENANCE_KEY in meta:
        write_provenance(image.header, meta[PROVENANCE_KEY])
    with atomic_write(path) as temporary:
        nib.save(image, temporary)


def _like_source(values: np.ndarray, source: str, meta: Mapping[str, Any]) -> nib.Nifti1Image:
    original = load_header(source) if is_nifti(source) and Path(source).is_file() else None
    if isinstance(original, NIFTI_IMAGES):
        if int(np.prod(original.shape)) != values.size or original.shape[:3] != values.shape:
            raise ValueError(
                f"{source}: expected a translation of shape {original.shape}; found {values.shape}. "
                "The postprocessing must invert the preprocessing."
            )
        kind = nib.Nifti2Image if isinstance(original, nib.Nifti2Pair) else nib.Nifti1Image
        return kind(values.reshape(original.shape), original.affine, original.header)
    affine = np.asarray(convert_to_numpy(meta["original_affine"]), dtype=np.float64)
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code="unknown" if meta.get(ASSUMED_KEY) else "scanner")
    image.header.set_xyzt_units("mm")
    return image
