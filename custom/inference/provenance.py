"""What a translation was made from, kept in its file's header, and which inputs still need translating."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
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
from custom.utils.identity import content_digest
from custom.utils.modalities import canonical

__all__ = ["Provenance", "pending_inputs", "read_provenance", "write_provenance"]

logger = logging.getLogger(__name__)

COMMENT_CODE = 6  # of a NIfTI header extension
NAME = "brain_mri_modality_translation"
PLAIN = (bool, int, float, str)


class Provenance:
    """Identifies what decides a translation: contents of source and weights, and the settings.

    Args:
        weights: file of the weights.
        network: the translator, whose sampler's settings count.
        settings: of the inferer and of the bundle, by name.
    """

    def __init__(self, weights: str | os.PathLike, network: nn.Module, **settings: Any) -> None:
        self.weights = weights
        parts = (network, getattr(network, "schedule", None))
        own = [{k: v for k, v in vars(p).items() if isinstance(v, PLAIN) and k != "training"} for p in parts if p]
        self.settings = json.loads(json.dumps({"network": own, **settings}, default=str))

    @cached_property
    def _weights_digest(self) -> str:
        return content_digest(str(self.weights))

    def of(self, source: str | os.PathLike) -> str:
        """The record, in JSON, of translations of ``source``, a file or a folder with a DICOM series."""
        entry = {"source": content_digest(str(source)), "weights": self._weights_digest, "settings": self.settings}
        return json.dumps({NAME: entry}, sort_keys=True)


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

    An input is passed over if ``output_dir`` holds its translation into every target, made from the same source, by
    the same weights with the same settings. A translation appears whole or not at all, so what an interrupted run has
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

    def done(item: Mapping[str, str]) -> bool:
        stem = item.get(NAME_KEY) or image_stem(item["image"])
        files = [Path(output_dir).expanduser() / f"{translation_name(stem, name)}.nii.gz" for name in names]
        if not all(file.is_file() for file in files):
            return False
        record = provenance.of(item["image"])
        return all(read_provenance(file) == record for file in files)

    pending = [dict(item) for item in inputs if not (skip and done(item))]
    if world_size() > 1:
        dist.barrier()  # nobody writes before everybody has looked
    if len(pending) < len(inputs) and is_main():
        logger.info("%d of %d files are translated already", len(inputs) - len(pending), len(inputs))
    return pending[rank() :: world_size()]
