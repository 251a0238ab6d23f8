"""Problems of a data set: one table, each with its remedy."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PROBLEMS", "Kind", "Problem"]


class Kind(NamedTuple):
    """A kind of problem.

    Attributes:
        title: in a few words.
        remedy: what to do.
        leaves_out: whether a subject that has it stays out of the datalist; otherwise it is a remark.
    """

    title: str
    remedy: str
    leaves_out: bool = True


PROBLEMS: dict[str, Kind] = {
    "truncated": Kind(
        "file ends early or is damaged", "Copy or download the file again; `gzip -t FILE` says whether it is whole."
    ),
    "unreadable": Kind("file cannot be read", "Open it in a viewer; export or download it again."),
    "dicom": Kind(
        "DICOM series that is not one whole volume",
        "Export the whole series again, or convert it to NIfTI and check it.",
    ),
    "not_3d": Kind("not one 3D volume", "Save the volume or channel that is meant as a file of its own."),
    "too_small": Kind("too few voxels", "Use a larger field of view, or resample to smaller voxels."),
    "not_finite": Kind("NaN or infinite voxels in the brain", "Replace them."),
    "overflowed": Kind(
        "integers that have overflowed", "Convert the original again, to a type that holds its intensities."
    ),
    "constant": Kind("constant image", "The file holds no image: export it again."),
    "mask": Kind("mask in place of an image", "Put the image in its place; a segmentation is named seg."),
    "spacing": Kind("implausible voxel size", "Correct the header's voxel size; it is in mm."),
    "grid": Kind(
        "modalities on different grids",
        "Bring them to one grid: `--register t2` registers the others to the subject's t2.",
    ),
    "registration": Kind("modalities that could not be registered", "Look at both scans: are they of one head?"),
    "identical": Kind(
        "two modalities with the same content", "One file is a copy of the other: put the right one there."
    ),
    "swapped": Kind(
        "modalities' names look exchanged",
        "Look at the pictures below and rename the files, or --modality_check false.",
    ),
    "duplicate": Kind("same images as another subject", "Remove one; a subject in two sections of a split is a leak."),
    "same_id": Kind("two subjects with one id", "Rename or remove one of them, so that an id is one subject."),
    "two_files": Kind("two files for one modality", "Remove or rename one of them."),
    "single": Kind("fewer than two modalities", "Add a file: a pair is needed to learn from or to compare."),
    "empty_folder": Kind("empty folder", "Copy the subject's files into it, or remove it."),
    "strange_folder": Kind(
        "folder whose files fit no name of the layout", "Rename the files, or choose another layout."
    ),
    "two_sections": Kind("subject in two sections of the split", "Name it in one section only."),
    "not_in_split": Kind("subject that the split file does not name", "Add it to a section."),
    "no_such_subject": Kind("subject of the split file that is not there", "Correct the split file.", leaves_out=False),
    "unused": Kind("images that are not used", "None needed if they are no modality to train with.", leaves_out=False),
    "passed_over": Kind("files that are no scans", "None needed if they are none.", leaves_out=False),
    "incomplete": Kind("modalities missing", "None needed: pairs are drawn from what there is.", leaves_out=False),
    "registered": Kind(
        "modalities registered to another's grid",
        "Look at the checkerboards: edges must go on from tile to tile.",
        False,
    ),
    "orientation": Kind(
        "header without orientation", "Set the header's sform or qform: left and right are a guess.", leaves_out=False
    ),
    "field_of_view": Kind("unusual field of view", "Check the voxel size and what the file shows.", leaves_out=False),
    "published": Kind("sizes differ from the published ones", "See which subjects are left out.", leaves_out=False),
    "few": Kind("too few subjects for a split", "Add subjects, or give --split or --split_file.", leaves_out=False),
    "unchecked": Kind("check not made", "Look at the pictures below.", leaves_out=False),
}


class Problem(NamedTuple):
    """One problem of one subject.

    Attributes:
        code: a key of ``PROBLEMS``.
        subject: its id; empty where the data set as a whole is meant.
        found: what was found, and where.
    """

    code: str
    subject: str
    found: str

    @property
    def title(self) -> str:
        """Kind of problem."""
        return PROBLEMS[self.code].title

    @property
    def remedy(self) -> str:
        """Remedy."""
        return PROBLEMS[self.code].remedy

    @property
    def leaves_out(self) -> bool:
        """Whether the subject stays out of the datalist."""
        return PROBLEMS[self.code].leaves_out
