"""The one way in which volumes are read: NIfTI, NRRD, MetaImage, DICOM series and multi-frame DICOM.

``read_volume(path)`` for a file or a DICOM folder; ``custom.data.transforms.LoadVolumed`` is the same as a transform.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import ImageReader, MetaTensor, NibabelReader
from monai.data.utils import orientation_ras_lps
from monai.transforms import EnsureChannelFirst
from monai.transforms.io.array import switch_endianness
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys, ensure_tuple
from nibabel.spatialimages import SpatialImage

from custom.data.dicom import DicomReader
from custom.data.itk_reader import ItkReader, read_information
from custom.data.nifti import is_nifti, lacks_orientation, load_header, load_nifti, with_whole_file
from custom.utils.errors import find_user_error

__all__ = ["ASSUMED_KEY", "IMAGE_SUFFIXES", "read_shape", "read_volume", "volume_of_client", "volume_of_image"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
ASSUMED_KEY = "orientation_assumed"  # of the metadata of a volume whose file does not say how its axes lie
SPATIAL_DIMS = 3
SDK_AFFINE = "nifti_affine_transform"  # in RAS, of the operator of MONAI Deploy that makes a volume of a DICOM series
FORMATS = "NIfTI, NRRD, MetaImage, a folder with one DICOM series, multi-frame DICOM"


class NiftiReader(NibabelReader):
    """MONAI's for one whole file, without its repair of headers, which puts a qform without a code before an sform.

    Attributes:
        lacks_orientation: as of :class:`custom.data.itk_reader.ItkReader`.
    """

    lacks_orientation = False

    def __init__(self) -> None:
        super().__init__(squeeze_non_spatial_dims=True)

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return all(is_nifti(name) for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        self.filenames = ensure_tuple(data)  # get_data looks here
        (name,) = self.filenames
        image = load_nifti(name)
        self.lacks_orientation = lacks_orientation(image)
        return image


def read_volume(path: str | os.PathLike[str]) -> MetaTensor:
    """Read a volume of any format. The reader follows from the format alone, not from what happens to be installed.

    Args:
        path: a NIfTI, NRRD, MetaImage or multi-frame DICOM file, or a folder with the files of one DICOM series.

    Returns:
        (1, H, W, D) float32 in the scanner's units, as stored (no reorientation), with ``affine`` (4, 4): voxel → mm,
        RAS. A 4D file gives (T, H, W, D), which is for the caller to refuse.

    Raises:
        FileNotFoundError: before anything is read, if it is missing.
        ValueError: if it cannot be read as an image, or its grid is not known: see ``custom.data.dicom.read_geometry``.
    """
    file = Path(path).expanduser()
    if os.fspath(path) == "":  # MONAI Label's for an id that it does not know; Path takes it as the working directory
        raise FileNotFoundError("image: expected a scan; found no file of that name. Correct the name or path.")
    if not file.exists():
        raise FileNotFoundError(f"{file}: expected an image; found no file. Correct the path.")
    readers: tuple[ImageReader, ...] = (DicomReader(), NiftiReader(), ItkReader())
    try:
        reader = next(r for r in readers if r.verify_suffix(str(file)))
        image = reader.read(str(file))
        return _volume(reader, image, str(file), assumed=getattr(reader, "lacks_orientation", False))
    except Exception as error:
        known = find_user_error(error)
        if known is not None and ": expected " in str(known):  # not what a library's C code raised in a frame of ours
            raise known from None
        detail = (str(error).strip() or "no detail").splitlines()[0]
        raise ValueError(
            f"{file}: expected a readable 3D image ({FORMATS}); found {type(error).__name__}: "
            f"{detail.rstrip('.')}. Check or replace the file."
        ) from error


def read_shape(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Voxels along the three axes, from a file's header alone; empty where it cannot be read, and for a series."""
    file = Path(path).expanduser()
    try:
        if is_nifti(file):
            return tuple(map(int, load_header(file).shape[:SPATIAL_DIMS]))
        if file.is_dir():
            return ()
        header = read_information(file)
        axes = range(min(header.GetNumberOfDimensions(), SPATIAL_DIMS))
        return tuple(int(header.GetDimensions(axis)) for axis in axes)
    except Exception:  # whatever a broken file provokes is said when the file is read
        return ()


def volume_of_image(image: Any) -> MetaTensor:
    """An image in memory as :func:`read_volume` gives it: of nibabel, of ITK, or a tensor that knows its affine.

    Args:
        image: a nibabel or ITK image; or a ``MetaTensor`` (H, W, D) or (1, H, W, D), as for :func:`volume_of_client`.

    Raises:
        ValueError: for anything else, such as an array, which does not say where its voxels lie, and for no grid.
    """
    if isinstance(image, MetaTensor):
        return volume_of_client(image)
    if isinstance(image, SpatialImage):
        reader = NiftiReader()
        reader.filenames = ("a nibabel image",)
        return _volume(reader, with_whole_file(image), "a nibabel image", assumed=lacks_orientation(image))
    if hasattr(image, "GetLargestPossibleRegion"):
        return _volume(ItkReader(), image, "an ITK image", assumed=False)
    raise ValueError(
        f"image: expected a path, a nibabel or ITK image, or a MetaTensor; found {type(image).__name__}. "
        "An array alone does not say how its axes lie in the patient."
    )


def _volume(reader: ImageReader, image: Any, name: str, *, assumed: bool) -> MetaTensor:
    values, meta = reader.get_data(image)
    if np.iscomplexobj(values):
        raise ValueError(f"{name}: expected real intensities; found complex numbers. Save their magnitude.")
    meta = {**switch_endianness(meta, "<"), ImageMetaKey.FILENAME_OR_OBJ: name}
    tensor = MetaTensor.ensure_torch_and_prune_meta(_in_order(values), meta)
    volume = EnsureChannelFirst()(tensor)
    assert isinstance(volume, MetaTensor)
    affine = volume.affine.numpy()
    _check_affine(affine, name)
    if assumed:
        volume.meta[ASSUMED_KEY] = True
        _warn_of_axes(affine, name, "Correct its header")
    return volume


def _in_order(values: np.ndarray) -> np.ndarray:
    """``values`` as float32 with the last axis's neighbours beside each other; in files those of the first one are.

    A slice at a time fits the processor's cache: a third of the time that the whole volume at once takes.
    """
    if values.ndim != SPATIAL_DIMS or values.flags.c_contiguous:
        return np.ascontiguousarray(values, np.float32)
    turned = np.empty(values.shape, np.float32)
    for index in range(values.shape[1]):
        turned[:, index] = np.ascontiguousarray(values[:, index].astype(np.float32))
    return turned


def volume_of_client(image: torch.Tensor | np.ndarray) -> MetaTensor:
    """A volume that a client has read by itself (MONAI Deploy), as :func:`read_volume` gives it.

    Args:
        image: (H, W, D), (1, H, W, D), or with a channel where the metadata's ``original_channel_dim`` says it is. Its
            ``affine`` is voxel → mm in the ``space`` of the metadata, RAS or LPS.

    Returns:
        (1, H, W, D) float32 with an RAS ``affine``, and the other metadata as they were.

    Raises:
        ValueError: for a grid that is no grid.
    """
    given = MetaTensor(image)
    meta, name = dict(given.meta), str(given.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "the client's image"))
    channel = meta.get(MetaKeys.ORIGINAL_CHANNEL_DIM, math.nan)
    unknown = given.ndim == SPATIAL_DIMS + 1 and given.shape[0] != 1 and isinstance(channel, float)
    if unknown or given.ndim not in (SPATIAL_DIMS, SPATIAL_DIMS + 1) or given.is_complex():
        kind = "complex numbers" if given.is_complex() else f"the shape {tuple(given.shape)}"
        raise ValueError(f"{name}: expected one 3D volume with one channel of real numbers; found {kind}. Choose one.")
    values = given.as_tensor().float()
    if values.ndim == SPATIAL_DIMS + 1 and values.shape[0] == 1:
        values = values[0]
    says = MetaKeys.ORIGINAL_AFFINE in meta or not torch.equal(given.affine, torch.eye(4, dtype=given.affine.dtype))
    affine = np.asarray(given.affine, dtype=np.float64)
    if SDK_AFFINE in meta:  # whatever its space is said to be: the SDK leaves that at what its operator was asked for
        affine = np.asarray(meta[SDK_AFFINE], dtype=np.float64)
    elif meta[MetaKeys.SPACE] == SpaceKeys.LPS:
        affine = orientation_ras_lps(affine)
    meta |= {MetaKeys.SPACE: SpaceKeys.RAS, MetaKeys.AFFINE: affine, MetaKeys.ORIGINAL_AFFINE: affine}
    if values.ndim == SPATIAL_DIMS:
        meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = "no_channel"
    volume = EnsureChannelFirst()(MetaTensor.ensure_torch_and_prune_meta(values, meta))
    assert isinstance(volume, MetaTensor)
    _check_affine(affine, name)
    if not says:
        volume.meta[ASSUMED_KEY] = True
        _warn_of_axes(affine, name, "Hand over an image with an affine")
    return volume


def _check_affine(affine: np.ndarray, name: str) -> None:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(
            f"{name}: expected an affine with three axes of some length; found {affine.tolist()}. Restore its header."
        )


def _warn_of_axes(affine: np.ndarray, name: str, advice: str) -> None:
    logger.warning(
        "%s: it does not say how its axes lie in the patient; they are taken as %s, and a translation is marked so. %s "
        "if left and right, or up and down, are exchanged.", name, affine[:3, :3].round(3).tolist(), advice,
    )  # fmt: skip
