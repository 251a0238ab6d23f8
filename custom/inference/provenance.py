"""Provenance of translations, kept in the file's header, and which inputs still need translating."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import pydicom
import torch.distributed as dist
from nibabel.filebasedimages import ImageFileError
from torch import nn

from custom.data.dicom import dicom_files
from custom.data.names import NAME_KEY, image_stem, translation_name
from custom.data.tolerant import FAULT_KEY
from custom.inference.inputs import check_output_format
from custom.utils.arguments import as_bool
from custom.utils.distributed import is_main, rank, world_size
from custom.utils.files import require_writable
from custom.utils.identity import FileDigests, differences, digest, identity
from custom.utils.modalities import canonical

__all__ = ["Provenance", "pending_inputs", "read_provenance", "write_provenance"]

logger = logging.getLogger(__name__)

PLACE, PLACE_DIGITS = "place", 8
COMMENT_CODE = 6  # of a NIfTI header extension
NAMED = 3  # files in a message
NAME = "brain_mri_modality_translation"


class Provenance:
    """Identifies what decides a translation: the content of its source, and the identity of what computes it.

    Args:
        network: the translator with its weights.
        preprocessing: of the source.
        settings: whatever else takes part, by name: the inferer, the postprocessing.
    """

    def __init__(self, network: nn.Module, preprocessing: Any, **settings: Any) -> None:
        computed = identity(network, preprocessing, settings)
        chains = [key for key, part in computed["settings"].items() if "transforms" in part]
        # settings such as the seed are for a reader, too; chains of transforms are long
        computed["settings"] |= {key: digest(computed["settings"][key]) for key in chains}
        self.identity = {**computed, "preprocessing": digest(computed["preprocessing"])}
        self._digests = FileDigests()

    def of(self, source: str | os.PathLike) -> str:
        """The record, in JSON, of translations of ``source``, a file or a folder with a DICOM series."""
        [[content]] = self._digests.of([[str(source)]])
        return json.dumps({NAME: {"source": content, PLACE: _place(source), **self.identity}}, sort_keys=True)


def _place(source: str | os.PathLike) -> str:
    """Tells one path from another without telling the path, which may name a patient."""
    return digest(os.path.abspath(os.path.expanduser(source)))[:PLACE_DIGITS]


def write_provenance(header: nib.Nifti1Header, record: str) -> None:
    """Put ``record`` into ``header`` as a comment, in place of an earlier one."""
    kept = [e for e in header.extensions if not _is_record(e)]
    header.extensions[:] = [*kept, nib.nifti1.Nifti1Extension(COMMENT_CODE, record.encode())]


def read_provenance(path: str | os.PathLike) -> str | None:
    """The record in a file's header; None without one, or where there is no such file."""
    try:
        extensions = nib.load(path).header.extensions
    except (OSError, ImageFileError, AttributeError, ValueError):
        return None
    found = [e for e in extensions if _is_record(e)]
    return _text(found[0]) if found else None


def _is_record(extension: nib.nifti1.Nifti1Extension) -> bool:
    return extension.get_code() == COMMENT_CODE and _text(extension).startswith(f'{{"{NAME}"')


def _text(extension: nib.nifti1.Nifti1Extension) -> str:
    content = extension.get_content()
    text = content if isinstance(content, str) else content.decode("utf-8", "replace")
    return text.rstrip("\x00")


def _differences(found: str | None, expected: str) -> list[str]:
    """Names of the parts in which two records differ; the place of the source among them, which changes no voxel."""
    try:
        parts = differences(*(json.loads(record or "{}").get(NAME, {}) for record in (found, expected)))
    except (AttributeError, TypeError, ValueError):
        return ["record"]
    # the inverse of the preprocessing is a part of the postprocessing
    return [part for part in parts if part != "postprocessing" or "preprocessing" not in parts]


def _of_another(path: Path, source: str, record: str, output_format: str) -> bool:
    """Whether a result was made from another subject's source of the same name.

    A source that was changed in its place is none, nor one that was moved. Of a DICOM series the study decides.
    """
    if output_format == "nifti":
        found = read_provenance(path)  # none in a damaged file, which is made anew
        return found is not None and {"source", PLACE} <= {*_differences(found, record)}
    folders = (path, Path(source) if Path(source).is_dir() else Path(source).parent)
    first = [file for folder in folders if folder.is_dir() for file in dicom_files(folder)[:1]]
    studies = {pydicom.dcmread(file, stop_before_pixels=True, force=True).get("StudyInstanceUID") for file in first}
    return len(studies) > 1


def pending_inputs(
    inputs: Sequence[Mapping[str, str]],
    provenance: Provenance,
    output_dir: str | os.PathLike,
    targets: Sequence[str] | str,
    *,
    skip_done: bool | str = True,
    output_format: str = "nifti",
) -> list[dict[str, str]]:
    """The inputs that this process has to translate.

    An input is passed over if ``output_dir`` holds its translation into every target with the record that it would
    have now: made from the same source, with the same identity. Others are made anew, and it is said in what they
    differ. One whose results would replace those of another subject, with a file of the same name, gets a fault in
    place of a translation. A translation appears whole or not at all, so what an interrupted run has left is done.
    Several processes share the rest evenly.

    Args:
        inputs: of ``inference_inputs``, the same on every process.
        provenance: of this run.
        output_dir: where the translations go.
        targets: modalities that are asked for.
        skip_done: translate all anew otherwise.
        output_format: in which the translations will be written; DICOM series hold no record, and are made anew.

    Raises:
        OutputError: where ``output_dir`` cannot be written to.
    """
    output_format = check_output_format(output_format)
    skip = as_bool("skip_done", skip_done) and output_format == "nifti"
    names = [canonical(t) for t in ([targets] if isinstance(targets, str) else targets)]
    folder, suffix = Path(output_dir).expanduser(), ".nii.gz" if output_format == "nifti" else ""
    stale: Counter[str] = Counter()
    done: list[str] = []
    pending: list[dict[str, str]] = []
    for item in inputs:
        stem = item.get(NAME_KEY) or image_stem(item["image"])
        files = [folder / f"{translation_name(stem, name)}{suffix}" for name in names]
        there = [file for file in files if file.exists()]
        record = provenance.of(item["image"]) if there else ""
        others = [file for file in there if _of_another(file, item["image"], record, output_format)]
        if others:
            pending.append({**item, FAULT_KEY: _SAME_NAME.format(item["image"], others[0])})
            continue
        found = {", ".join(p for p in _differences(read_provenance(f), record) if p != PLACE) for f in there if skip}
        if len(there) == len(files) and found == {""}:
            done.append(stem)
            continue
        stale.update(found - {""})
        pending.append(dict(item))
    if world_size() > 1:
        dist.barrier()  # nobody writes before everybody has looked
    if is_main():
        _say(done, stale, len(inputs), folder)
    if pending:
        require_writable(folder, len(pending) * len(names))
    return pending[rank() :: world_size()]


_SAME_NAME = (
    "{}: expected a result of its own; found {}, which was made of another file of that name and would be replaced. "
    "Choose another --output_dir for it, or name the folder above both: then their subfolders tell the results apart."
)


def _say(done: Sequence[str], stale: Mapping[str, int], total: int, folder: Path) -> None:
    if done:
        named = ", ".join(done[:NAMED]) + (", …" if len(done) > NAMED else "")
        logger.warning(
            "%d of %d files are translated already, in %s: %s. --skip_done false translates them anew.",
            len(done), total, folder, named,
        )  # fmt: skip
    for parts, count in stale.items():
        logger.warning("%d of %d files are translated anew: made with another %s", count, total, parts)
