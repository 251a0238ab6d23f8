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
import torch.distributed as dist
from nibabel.filebasedimages import ImageFileError
from torch import nn

from custom.data.names import NAME_KEY, image_stem, translation_name
from custom.inference.inputs import check_output_format
from custom.utils.arguments import as_bool
from custom.utils.distributed import is_main, rank, world_size
from custom.utils.identity import FileDigests, differences, digest, identity
from custom.utils.modalities import canonical

__all__ = ["Provenance", "pending_inputs", "read_provenance", "write_provenance"]

logger = logging.getLogger(__name__)

COMMENT_CODE = 6  # of a NIfTI header extension
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
        return json.dumps({NAME: {"source": content, **self.identity}}, sort_keys=True)


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
    """Names of the parts in which two records differ."""
    try:
        entries = [json.loads(record or "{}").get(NAME, {}) for record in (found, expected)]
        return differences(*entries)
    except (AttributeError, TypeError, ValueError):
        return ["record"]


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
    differ. A translation appears whole or not at all, so what an interrupted run has
    left is done. Several processes share the rest evenly.

    Args:
        inputs: of ``inference_inputs``, the same on every process.
        provenance: of this run.
        output_dir: where the translations go.
        targets: modalities that are asked for.
        skip_done: translate all anew otherwise.
        output_format: in which the translations will be written; DICOM series hold no record, and are made anew.
    """
    skip = as_bool("skip_done", skip_done) and check_output_format(output_format) == "nifti"
    names = [canonical(t) for t in ([targets] if isinstance(targets, str) else targets)]

    stale: Counter[str] = Counter()

    def done(item: Mapping[str, str]) -> bool:
        stem = item.get(NAME_KEY) or image_stem(item["image"])
        files = [Path(output_dir).expanduser() / f"{translation_name(stem, name)}.nii.gz" for name in names]
        if not all(file.is_file() for file in files):
            return False
        record = provenance.of(item["image"])
        found = [read_provenance(file) for file in files]
        stale.update({", ".join(_differences(other, record)) for other in found if other != record})
        return found == [record] * len(files)

    pending = [dict(item) for item in inputs if not (skip and done(item))]
    if world_size() > 1:
        dist.barrier()  # nobody writes before everybody has looked
    if len(pending) < len(inputs) and is_main():
        logger.warning("%d of %d files are translated already", len(inputs) - len(pending), len(inputs))
    for parts, count in stale.items() if is_main() else ():
        logger.warning("%d of %d files are translated anew: made with another %s", count, len(inputs), parts)
    return pending[rank() :: world_size()]
