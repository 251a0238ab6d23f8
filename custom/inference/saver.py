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
from custom.data.features import FEATURES_KEY
from custom.data.names import (
    NAME_KEY,
    PROVENANCE_KEY,
    RECORDS_KEY,
    image_stem,
    image_suffix,
    targets_of,
    translation_name,
    uncertainty_name,
)
from custom.data.nifti import is_nifti, load_header
from custom.data.readers import ASSUMED_KEY
from custom.data.scans import is_synthetic, says_synthetic
from custom.data.sets import DISAGREEMENT_KEY, registered_of, sources_of
from custom.inference.dicom_writer import save_synthetic_series
from custom.inference.inferer import METHOD, TranslationInferer
from custom.inference.inputs import check_output_format
from custom.inference.likeness import doubts
from custom.inference.provenance import (
    TWICE,
    check_sidecar,
    describe_translation,
    sidecar_text,
    translation_record,
    uncertainty_record,
    write_provenance,
)
from custom.utils.arguments import as_bool
from custom.utils.files import atomic_write
from custom.utils.modalities import canonical

__all__ = ["DeclareSyntheticd", "SaveImageTranslationsd", "save_synthetic"]

logger = logging.getLogger(__name__)

DESCRIPTION_BYTES = 79
LABEL_SUFFIX = "result_extension"  # of the temporary file that MONAI Label's writer makes
LABEL_PARAMETERS = "result"  # sent to its client beside the image
NIFTI_IMAGES = (nib.Nifti1Pair, nib.Nifti2Pair)


class DeclareSyntheticd(MapTransform):
    """Say of a prediction that it is synthetic and what it was made of, by what and how.

    Its metadata holds a record of every target under ``RECORDS_KEY``, from which what is written is marked, and
    ``descrip`` says in one line that it is synthetic, for clients that write it themselves. The server of MONAI Label
    writes no metadata: there the name of the file that is sent ends with ``_<target>_synthetic``, and the record is
    among the parameters sent along.

    Args:
        keys: key of the prediction (K, H, W, D).
        inferer: that made it.
        version: of the bundle.

    Attributes:
        records: of the last prediction, one a target; for clients that hand on bare arrays (MONAI Deploy).
    """

    not_in_identity = ("inferer", "version", "records")

    def __init__(
        self,
        keys: KeysCollection,
        inferer: TranslationInferer,
        *,
        version: str = "",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.inferer, self.version = inferer, version
        self.records: dict[str, dict[str, Any]] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        targets = targets_of(d, self.inferer.targets)
        for key in self.key_iterator(d):
            meta = getattr(d[key], "meta", {})
            self.records = self._records(meta, targets)
            twice = any(record[TWICE] for record in self.records.values())
            method = self.inferer.used().get(METHOD, "")
            description = describe_translation(", ".join(self.records), self.version, method=method, twice=twice)
            if isinstance(d[key], MetaTensor):
                meta[RECORDS_KEY] = self.records
                meta["descrip"] = description
        if in_label_server():
            suffix = d.get(LABEL_SUFFIX) or image_suffix(d.get("image_path") or "")
            d[LABEL_SUFFIX] = f"{translation_name('', '_'.join(self.records))}{suffix}"
            [record] = self.records.values()  # an answer is one volume
            said = {"synthetic": True, "description": record["Description"], "provenance": record}
            d[LABEL_PARAMETERS] = {**(d.get(LABEL_PARAMETERS) or {}), **said}
        return d

    def _records(self, meta: Mapping[str, Any], targets: Sequence[str]) -> dict[str, dict[str, Any]]:
        used, sources = self.inferer.used(), [name for name in sources_of(meta) if name]
        given: dict[str, Any] = {"version": self.version, "sources": sources, "provenance": meta.get(PROVENANCE_KEY)}
        given["twice"] = says_synthetic(meta.get("descrip")) or any(map(is_synthetic, sources))
        given["registered"] = registered_of(meta)
        given["warnings"] = self._warnings(sources, meta)
        if meta.get(ASSUMED_KEY):
            given["warnings"].append("orientation assumed, since the source does not tell it")
        return {target: translation_record(target, used, **given) for target in targets}

    def _warnings(self, sources: Sequence[str], meta: Mapping[str, Any]) -> list[str]:
        features = meta.get(FEATURES_KEY)
        number = max(len(sources), 0 if features is None else len(features))
        warnings = []
        for i in range(number):
            source = sources[i] if i < len(sources) else None
            named = f" {Path(source).name}" if source and number > 1 else ""
            found = doubts(source, None if features is None else features[i], self.inferer.network)
            warnings += [f"source{named} unlike the scans of the training: {doubt}" for doubt in found]
        if meta.get(DISAGREEMENT_KEY):
            warnings.append(meta[DISAGREEMENT_KEY])
            logger.warning(
                "%s: %s, so the translation may be wrong. Look at them side by side: take the skull off all of "
                "them, and register what was moved.", ", ".join(sources) or "image", meta[DISAGREEMENT_KEY],
            )  # fmt: skip
        return warnings


class SaveImageTranslationsd(SaveImaged):
    """Write each channel of a prediction as ``<source>_<target>_synthetic.nii.gz``, or as a folder with a DICOM series.

    An error map gets that name and ``_uncertainty``; it is in the units of the translation, and marked like it.

    Clients that keep the result themselves drop it with MONAI's own: MONAI Label drops what derives from
    ``SaveImaged``, MONAI Deploy what has ``SaveImage`` in its name. ``<source>`` is the ``"name"`` of the item, as
    ``inference_inputs`` gives it, or else that of the file.

    Args:
        keys: key of the prediction (K, H, W, D) on the source's grid, with the source's metadata; with error maps
            (2 K, H, W, D).
        output_dir: folder for the files; made where it does not exist.
        targets: names of the K channels, in order, of items that have no targets of their own.
        uncertainty: whether there are error maps behind the translations.
        output_format: ``nifti``, or ``dicom`` for sources that are DICOM: see ``custom.inference.dicom_writer``.

    Raises:
        ValueError: if the number of channels, the shape or the format does not fit the source.
        KeyError: for a prediction that ``DeclareSyntheticd`` has not marked.
    """

    # where and under which name, and MONAI's own saver, which is not used
    not_in_identity = ("output_dir", "targets", "uncertainty", "saver")

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike,
        targets: str | Sequence[str],
        *,
        output_format: str = "nifti",
        uncertainty: bool | str = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, output_dir=Path(output_dir), allow_missing_keys=allow_missing_keys)
        self.output_dir = Path(output_dir).expanduser()
        self.targets = [canonical(t) for t in ([targets] if isinstance(targets, str) else targets)]
        self.output_format = check_output_format(output_format)
        self.uncertainty = as_bool("uncertainty", uncertainty)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            prediction = d[key]
            source = str(prediction.meta[ImageMetaKey.FILENAME_OR_OBJ])
            name = str(d.get(NAME_KEY) or image_stem(source))
            targets = targets_of(d, self.targets)
            expected = (1 + self.uncertainty) * len(targets)
            if prediction.shape[0] != expected:
                raise ValueError(
                    f"{source}: expected {expected} channels ({', '.join(targets)}) under {key!r}; "
                    f"found {prediction.shape[0]}. Give the saver the targets and the uncertainty of the inferer."
                )
            for number, (volume, target) in enumerate(zip(prediction, targets * (1 + self.uncertainty), strict=True)):
                record = prediction.meta[RECORDS_KEY][target]
                file = translation_name(name, target)
                if number >= len(targets):
                    record, file = uncertainty_record(record), uncertainty_name(name, target)
                logger.info("wrote %s", self._save(volume, number, source, file, record, prediction.meta))
        return d

    def _save(
        self,
        volume: torch.Tensor,
        number: int,
        source: str,
        name: str,
        record: Mapping[str, Any],
        meta: Mapping[str, Any],
    ) -> Path:
        if self.output_format == "dicom":
            path = self.output_dir / name
            others = [other for other in sources_of(meta) if other != source]
            save_synthetic_series(volume, path, source, record, others=others, number=number + 1)
        else:
            path = self.output_dir / f"{name}.nii.gz"
            save_synthetic(volume, path, source, meta, record)
        return path


def save_synthetic(
    volume: torch.Tensor, path: Path, source: str, meta: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Write one volume as float32 NIfTI on its source's grid, its record beside it; both appear whole or not at all.

    The header of a NIfTI source is kept (grid, qform and sform with their codes, units); of other formats, DICOM among
    them, the affine. Where the source does not say how its axes lie, neither does the result: its codes are 0, unknown.

    Args:
        volume: (H, W, D).
        path: of the file to write.
        source: file that the volume was made from.
        meta: its metadata as MONAI's readers give them.
        record: of the translation, which goes into the header, its description (cut to 79 bytes) into ``descrip``.
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
    description = f"{record['Description']}{'; orientation assumed' if meta.get(ASSUMED_KEY) else ''}"
    image.header["descrip"] = description.encode("ascii", "replace")[:DESCRIPTION_BYTES]
    write_provenance(image.header, record)
    # the image takes its place last: there is none without its record
    with atomic_write(path) as temporary, atomic_write(check_sidecar(path)) as beside:
        nib.save(image, temporary)
        beside.write_text(sidecar_text(record), encoding="utf-8")


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
