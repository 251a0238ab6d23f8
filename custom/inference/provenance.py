"""What every translation says of itself, in its header and beside it, and which inputs still need translating."""

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
import torch
import torch.distributed as dist
from torch import nn

from custom.data.dicom_files import dicom_files
from custom.data.names import NAME_KEY, image_stem, sidecar_of, targets_of, translation_name, uncertainty_name
from custom.data.nifti import load_header
from custom.data.tolerant import FAULT_KEY
from custom.inference.inferer import METHOD
from custom.inference.inputs import check_output_format
from custom.utils.arguments import as_bool
from custom.utils.distributed import is_main, rank, world_size
from custom.utils.errors import first_of
from custom.utils.files import atomic_write, require_writable
from custom.utils.identity import FileDigests, content_digest, describe, differences, digest, identity
from custom.utils.modalities import canonical

__all__ = [
    "NAME",
    "QUANTITY",
    "TWICE",
    "Provenance",
    "check_replaceable",
    "check_sidecar",
    "describe_translation",
    "pending_inputs",
    "read_provenance",
    "read_record",
    "sidecar_text",
    "translation_record",
    "uncertainty_record",
    "write_provenance",
]

logger = logging.getLogger(__name__)

Source = str | os.PathLike | torch.Tensor
PLACE, PLACE_DIGITS = "place", 8
COMMENT_CODE = 6  # of a NIfTI header extension
NAME = "brain_mri_modality_translation"
IDENTITY = "Identity"
TWICE = "SourceSynthetic"
QUANTITY = "Quantity"  # of an error map alone


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

    def of(self, source: Source | list[Source]) -> str:
        """What decides translations of ``source``, in JSON: a file, a folder with a DICOM series, or an image.

        Of several sources of one subject the order does not count, nor do their names. Of files the place is told too,
        which decides nothing.
        """
        contents = sorted(map(self.content, source if isinstance(source, list | tuple) else [source]))
        content = contents if len(contents) > 1 else contents[0]
        return json.dumps({"source": content, **_place(source), **self.identity}, sort_keys=True)

    def content(self, source: Source) -> str:
        """Digest of a file, a folder with a DICOM series, or an image."""
        if isinstance(source, torch.Tensor):
            return digest(describe([source.as_subclass(torch.Tensor), getattr(source, "affine", None)]))
        [[content]] = self._digests.of([[str(source)]])
        return content


def _place(source: Source | list[Source]) -> dict[str, str]:
    """Tells one path from another without telling the path, which may name a patient; of images in memory nothing.

    The place of a set is the folder that all its files lie in or below: a source more or less does not change it.
    """
    members = source if isinstance(source, list | tuple) else [source]
    paths = [os.path.abspath(os.path.expanduser(m)) for m in members if not isinstance(m, torch.Tensor)]
    if not paths:
        return {}
    place = os.path.commonpath([os.path.dirname(p) for p in paths]) if isinstance(source, list | tuple) else paths[0]
    return {PLACE: digest(place)[:PLACE_DIGITS]}


def describe_translation(target: str, version: str = "", *, method: str = "", twice: bool = False) -> str:
    """One line for the metadata of a translation, or of several; ``twice`` of sources that hold a translation."""
    by = "from SYNTHETIC source by" if twice else "from"
    return f"SYNTHETIC {target} {by} {_program(method)} {f'v{version}' if version else ''}".rstrip()


def _program(method: str) -> str:
    """What made a translation: this program, and the method of comparison whose weights it was given."""
    return ", ".join(filter(None, (NAME, method)))


def translation_record(
    target: str,
    used: Mapping[str, Any],
    *,
    version: str = "",
    sources: Sequence[str | os.PathLike] = (),
    provenance: str | None = None,
    registered: Sequence[Mapping[str, Any]] = (),
    warnings: Sequence[str] = (),
    twice: bool = False,
) -> dict[str, Any]:
    """What a translation says of itself, in its header, its sidecar, its DICOM attributes and to MONAI Label's clients.

    Args:
        target: its contrast.
        used: seed, steps, samples, weights and, of a comparison method, its name, as ``TranslationInferer.used`` gives
            them.
        version: of the bundle.
        sources: files or folders that it was made from, of which the names are kept; none of images in memory.
        provenance: of ``Provenance.of``, where there is one.
        registered: which sources were moved to another's grid on the way, and how far.
        warnings: what makes it doubtful.
        twice: a source is a translation itself.

    Returns:
        A dictionary for JSON, the names as BIDS writes them. ``SourceSHA`` is the SHA-256 of the file; of a series
        that of the names and SHA-256 of its files; of an image in memory that of its voxels and affine, or None. Of
        several sources it is their sorted list.
    """
    decides = json.loads(provenance) if provenance else {}
    content = decides.get("source")
    if content is None and sources and all(Path(source).exists() for source in sources):
        contents = sorted(content_digest(str(source)) for source in sources)
        content = contents if len(contents) > 1 else contents[0]
    method = str(used.get(METHOD, ""))
    return {
        "Description": describe_translation(target, version, method=method, twice=twice),
        "Synthetic": True,
        TWICE: twice,
        "GeneratedBy": [{"Name": _program(method), "Version": version}],
        "Sources": sorted(Path(source).name for source in sources),
        "SourceSHA": content,
        "Target": target,
        **({"Registered": list(registered)} if registered else {}),
        **used,
        "Warnings": list(warnings),
        **({IDENTITY: decides} if decides else {}),
    }


def uncertainty_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a translation's error map, which the same decides."""
    told = str(record["Description"]).replace(f" {record['Target']} ", f" {record['Target']} uncertainty ", 1)
    return {**record, "Description": told, QUANTITY: "expected absolute error", "Units": "of the translation"}


def sidecar_text(record: Mapping[str, Any]) -> str:
    """Content of the JSON file beside an image."""
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def check_sidecar(path: Path) -> Path:
    """Where the sidecar of the image ``path`` goes.

    Raises:
        ValueError: for a file there that no translation left, such as the sidecar of a scan: it is not replaced.
    """
    sidecar = sidecar_of(path)
    if sidecar.exists() and NAME not in sidecar.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(
            f"{sidecar}: expected no file, or that of an earlier translation, since the record of {path.name} goes "
            "there; found another one. Move it away, or write to another folder."
        )
    return sidecar


def check_replaceable(path: Path) -> None:
    """Refuse to write over what is no translation of ours.

    Raises:
        ValueError: for a file ``path`` whose header holds no record.
    """
    if path.exists() and read_provenance(path) is None:
        raise ValueError(
            f"{path}: expected no file, or an earlier translation, which is replaced; found a file that is no output "
            "of this program. Choose another name, or move it away."
        )


def write_provenance(header: nib.Nifti1Header, record: Mapping[str, Any]) -> None:
    """Put ``record`` into ``header`` as a comment, in place of an earlier one."""
    kept = [e for e in header.extensions if not _is_record(e)]
    text = json.dumps({NAME: record}, sort_keys=True)
    header.extensions[:] = [*kept, nib.nifti1.Nifti1Extension(COMMENT_CODE, text.encode())]


def read_provenance(path: str | os.PathLike) -> dict[str, Any] | None:
    """The record in a file's header; None without one, or where there is no such file."""
    try:
        extensions = load_header(path).header.extensions
    except Exception:  # of a damaged translation nothing is known: it is made anew
        return None
    found = [e for e in extensions if _is_record(e)]
    try:
        return dict(json.loads(_text(found[0]))[NAME]) if found else None
    except (TypeError, ValueError):
        return {}  # of something else, or cut short


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of an image, in its header or beside it; None of what is no output of ours."""
    if found := read_provenance(path):
        return found
    try:
        beside = json.loads(sidecar_of(path).read_text(encoding="utf-8"))
        ours = beside["Synthetic"] is True and str(beside["GeneratedBy"][0]["Name"]).startswith(NAME)
    except (OSError, ValueError, LookupError, TypeError):  # none, or somebody else's
        return None
    return beside if ours else None


def _is_record(extension: nib.nifti1.Nifti1Extension) -> bool:
    return extension.get_code() == COMMENT_CODE and _text(extension).startswith(f'{{"{NAME}"')


def _text(extension: nib.nifti1.Nifti1Extension) -> str:
    content = extension.get_content()
    text = content if isinstance(content, str) else content.decode("utf-8", "replace")
    return text.rstrip("\x00")


def _stale(found: Mapping[str, Any] | None, expected: Mapping[str, Any]) -> list[str]:
    """Names of the parts in which what decided a translation differs from what would decide it now."""
    decided = (found or {}).get(IDENTITY)
    parts = differences(decided, expected) if isinstance(decided, Mapping) else ["record"]
    # the inverse of the preprocessing is a part of the postprocessing; the place of the source changes no voxel
    left_out = {PLACE, "postprocessing"} if "preprocessing" in parts else {PLACE}
    return [part for part in parts if part not in left_out]


def _of_another(path: Path, source: str, expected: Mapping[str, Any], output_format: str) -> bool:
    """Whether a result was made from another subject's source of the same name.

    A source that was changed in its place is none, nor one that was moved. Of a DICOM series the study decides.
    """
    if output_format == "nifti":
        decided = (read_provenance(path) or {}).get(IDENTITY)  # none in a damaged file, which is made anew
        return isinstance(decided, Mapping) and all(decided.get(k) != expected[k] for k in ("source", PLACE))
    folders = (path, Path(source) if Path(source).is_dir() else Path(source).parent)
    first = [file for folder in folders if folder.is_dir() for file in dicom_files(folder)[:1]]
    studies = {pydicom.dcmread(file, stop_before_pixels=True, force=True).get("StudyInstanceUID") for file in first}
    return len(studies) > 1


def pending_inputs(
    inputs: Sequence[Mapping[str, Any]],
    provenance: Provenance,
    output_dir: str | os.PathLike,
    targets: Sequence[str] | str,
    *,
    uncertainty: bool | str = False,
    skip_done: bool | str = True,
    output_format: str = "nifti",
) -> list[dict[str, Any]]:
    """The inputs that this process has to translate.

    An input is passed over if ``output_dir`` holds its translation into every target with the record that it would
    have now: made from the same source, with the same identity. Others are made anew, and it is said in what they
    differ. One whose results would replace those of another subject, with a file of the same name, gets a fault in
    place of a translation. A translation appears whole or not at all, so what an interrupted run has left is done; a
    sidecar that is missing is written again from the header. Several processes share the rest evenly.

    Args:
        inputs: of ``inference_inputs``, the same on every process.
        provenance: of this run.
        output_dir: where the translations go.
        targets: modalities that are asked for, of items that have none of their own.
        uncertainty: whether the error map of each translation is asked for, too.
        skip_done: translate all anew otherwise.
        output_format: in which the translations will be written; DICOM series hold no record, and are made anew.

    Raises:
        OutputError: where ``output_dir`` cannot be written to.
    """
    output_format = check_output_format(output_format)
    skip = as_bool("skip_done", skip_done) and output_format == "nifti"
    names = [canonical(t) for t in ([targets] if isinstance(targets, str) else targets)]
    folder, suffix = Path(output_dir).expanduser(), ".nii.gz" if output_format == "nifti" else ""
    name_of = [translation_name, *([uncertainty_name] if as_bool("uncertainty", uncertainty) else [])]
    stale: Counter[str] = Counter()
    done: list[str] = []
    pending: list[dict[str, Any]] = []
    for item in inputs:
        stem = item.get(NAME_KEY) or image_stem(item["image"])
        wanted = targets_of(item, names)
        files = [folder / f"{name(stem, target)}{suffix}" for target in wanted for name in name_of]
        if FAULT_KEY in item or not any(file.exists() for file in files):
            pending.append(dict(item))
            continue
        expected = json.loads(provenance.of(item["image"]))
        fault = _same_name(item["image"], files, expected, output_format)
        records = {file: read_provenance(file) for file in files if skip and file.exists()}
        differing = {", ".join(_stale(record, expected)) for record in records.values()} - {""}
        if fault or len(records) < len(files) or differing:
            stale.update(() if fault else differing)
            pending.append({**item, FAULT_KEY: fault} if fault else dict(item))
            continue
        done.append(stem)
        _restore_sidecars(records)
    if world_size() > 1:
        dist.barrier()  # nobody writes before everybody has looked
    if is_main():
        _say(done, stale, len(inputs), folder)
    if pending:
        require_writable(folder, len(pending) * len(names) * len(name_of))
    return pending[rank() :: world_size()]


def _same_name(image: Any, files: Sequence[Path], expected: Mapping[str, Any], output_format: str) -> str | None:
    """The fault of sources whose results would replace another subject's; None where there is none."""
    first = image if isinstance(image, str) else image[0]
    others = [file for file in files if file.exists() and _of_another(file, first, expected, output_format)]
    named = image if isinstance(image, str) else ", ".join(image)
    return _SAME_NAME.format(named, others[0]) if others else None


def _restore_sidecars(records: Mapping[Path, Mapping[str, Any] | None]) -> None:
    for file, record in records.items() if is_main() else ():
        if not sidecar_of(file).exists():
            with atomic_write(sidecar_of(file)) as temporary:
                temporary.write_text(sidecar_text(record or {}), encoding="utf-8")


_SAME_NAME = (
    "{}: expected a result of its own; found {}, which was made of another file of that name and would be replaced. "
    "Choose another --output_dir for it, or name the folder above both: then their subfolders tell the results apart."
)


def _say(done: Sequence[str], stale: Mapping[str, int], total: int, folder: Path) -> None:
    if done:
        logger.warning(
            "%d of %d files are translated already, in %s: %s. --skip_done false translates them anew.",
            len(done), total, folder, first_of(done),
        )  # fmt: skip
    for parts, count in stale.items():
        logger.warning("%d of %d files are translated anew: made with another %s", count, total, parts)
