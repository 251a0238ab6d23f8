"""Bad files that somebody asks to translate."""

from __future__ import annotations

import gzip
import os
import struct

import nibabel as nib
import numpy as np
from kinds import kind
from rooms import Room

ITK_SECONDS = 6.0  # it loads its own modules when it is first asked for a format


@kind("files", "no such file", r"absent\.nii\.gz", "found no")
def _(room: Room) -> list[object]:
    return room.inference(room.folder / "absent.nii.gz")


@kind("files", "empty file", r"scan\.nii\.gz")
def _(room: Room) -> list[object]:
    return room.inference(room.write("scan.nii.gz", b""))


@kind("files", "text with an image's name", r"scan\.nii\b")
def _(room: Room) -> list[object]:
    return room.inference(room.write("scan.nii", "this is no image\n" * 40))


@kind("files", "an HTML page with an image's name", r"scan\.nii\.gz")
def _(room: Room) -> list[object]:
    return room.inference(room.write("scan.nii.gz", "<html><body>404</body></html>"))


@kind("files", "gzip cut short", r"scan\.nii\.gz")
def _(room: Room) -> list[object]:
    content = room.base.scan.read_bytes()
    return room.inference(room.write("scan.nii.gz", content[: len(content) // 2]))


@kind("files", "gzip with one changed byte", r"scan\.nii\.gz")
def _(room: Room) -> list[object]:
    content = bytearray(room.base.scan.read_bytes())
    content[len(content) // 2] ^= 0x41
    return room.inference(room.write("scan.nii.gz", bytes(content)))


@kind("files", "gzip with a wrong checksum", r"scan\.nii\.gz")
def _(room: Room) -> list[object]:
    content = bytearray(gzip.compress(bytes(room.raw())))
    content[-6] ^= 0xFF
    return room.inference(room.write("scan.nii.gz", bytes(content)))


@kind("files", "unpacked NIfTI cut short", r"scan\.nii\b")
def _(room: Room) -> list[object]:
    return room.inference(room.write("scan.nii", bytes(room.raw()[:-5000])))


@kind("files", "header only", r"scan\.nii\b")
def _(room: Room) -> list[object]:
    return room.inference(room.write("scan.nii", bytes(room.raw()[:352])))


@kind("files", "header with a negative size", r"scan\.nii\b")
def _(room: Room) -> list[object]:
    raw = room.raw()
    struct.pack_into("<h", raw, 42, -40)
    return room.inference(room.write("scan.nii", bytes(raw)))


@kind("files", "header that claims 30000 voxels an axis", r"scan\.nii\b")
def _(room: Room) -> list[object]:
    raw = room.raw()
    struct.pack_into("<3h", raw, 42, 30000, 30000, 30000)
    return room.inference(room.write("scan.nii", bytes(raw)))


@kind("files", "header with an unknown number type", r"scan\.nii\b")
def _(room: Room) -> list[object]:
    raw = room.raw()
    struct.pack_into("<h", raw, 70, 999)
    return room.inference(room.write("scan.nii", bytes(raw)))


@kind("files", "voxels of size 0", r"scan\.nii")
def _(room: Room) -> list[object]:
    raw = room.raw()
    struct.pack_into("<f", raw, 80, 0.0)
    struct.pack_into("<4f", raw, 280, 0.0, 0.0, 0.0, 0.0)
    return room.inference(room.write("scan.nii", bytes(raw)))


@kind("files", "affine that is not finite", r"scan\.nii")
def _(room: Room) -> list[object]:
    raw = room.raw()
    struct.pack_into("<f", raw, 280, float("nan"))
    return room.inference(room.write("scan.nii", bytes(raw)))


@kind("files", "singular affine", r"scan\.nii")
def _(room: Room) -> list[object]:
    raw = room.raw()
    struct.pack_into("<12f", raw, 280, 4, 4, 0, 0, 4, 4, 0, 0, 0, 0, 4, 0)
    return room.inference(room.write("scan.nii", bytes(raw)))


@kind("files", "constant volume", r"scan\.nii", "constant")
def _(room: Room) -> list[object]:
    return room.inference(room.save(np.full((40, 40, 40), 7, np.int16)))


@kind("files", "empty volume", r"scan\.nii")
def _(room: Room) -> list[object]:
    return room.inference(room.save(np.zeros((40, 40, 40), np.int16)))


@kind("files", "mask", r"scan\.nii", "mask|label")
def _(room: Room) -> list[object]:
    return room.inference(room.save((room.values() > 0).astype(np.uint8)))


@kind("files", "label map of four values", r"scan\.nii", "segmentation")
def _(room: Room) -> list[object]:
    values = room.values()
    return room.inference(room.save(np.digitize(values, [1, 300, 600]).astype(np.uint8)))


@kind("files", "segmentation named by the user", r"seg", "label|mask|segmentation")
def _(room: Room) -> list[object]:
    return room.inference(room.copy(room.base.scan, "case-seg.nii.gz"))


@kind("files", "NaN inside the brain", r"scan\.nii", "NaN")
def _(room: Room) -> list[object]:
    values = room.values()
    values[tuple(n // 2 for n in values.shape)] = np.nan
    return room.inference(room.save(values))


@kind("files", "infinite voxels inside the brain", r"scan\.nii", "infinite|finite")
def _(room: Room) -> list[object]:
    values = room.values()
    values[tuple(n // 2 for n in values.shape)] = np.inf
    return room.inference(room.save(values))


@kind("files", "nothing but NaN", r"scan\.nii", "NaN|finite")
def _(room: Room) -> list[object]:
    return room.inference(room.save(np.full((40, 40, 40), np.nan, np.float32)))


@kind("files", "complex numbers", r"scan\.nii", "complex")
def _(room: Room) -> list[object]:
    return room.inference(room.save(room.values().astype(np.complex64)))


@kind("files", "colours", r"scan\.nii")
def _(room: Room) -> list[object]:
    colours = np.zeros((40, 40, 40), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"] = np.arange(40)[:, None, None]
    return room.inference(room.save(colours))


@kind("files", "integers that wrapped", r"scan\.nii", "wrapped|overflow")
def _(room: Room) -> list[object]:
    values = room.values()
    wrapped = (values * (60000 / values.max())).astype(np.uint16).astype(np.int16)
    return room.inference(room.save(wrapped))


@kind("files", "one slice", r"scan\.nii")
def _(room: Room) -> list[object]:
    return room.inference(room.save(room.values()[:, :, 20:21]))


@kind("files", "two dimensions", r"scan\.nii", "3D|dimension|two|2")
def _(room: Room) -> list[object]:
    return room.inference(room.save(room.values()[:, :, 20]))


@kind("files", "several time points", r"scan\.nii", "one|single")
def _(room: Room) -> list[object]:
    return room.inference(room.save(np.stack([room.values()] * 3, axis=-1)))


@kind("files", "a brain too small for the network", r"scan\.nii", "voxels")
def _(room: Room) -> list[object]:
    return room.inference(room.save(room.values()[::6, ::6, ::6]))


@kind("files", "noise without a brain", r"scan\.nii")
def _(room: Room) -> list[object]:
    return room.inference(room.save(np.zeros((40, 40, 40), np.float32) - np.arange(40, dtype=np.float32) * 0))


@kind("files", "an unknown suffix", r"scan\.xyz", seconds=ITK_SECONDS)
def _(room: Room) -> list[object]:
    return room.inference(room.copy(room.base.scan, "scan.xyz"))


@kind("files", "a picture", r"scan\.png", seconds=ITK_SECONDS)
def _(room: Room) -> list[object]:
    return room.inference(room.write("scan.png", b"\x89PNG\r\n\x1a\n" + bytes(200)))


@kind("files", "an empty folder", "scans")
def _(room: Room) -> list[object]:
    (room.folder / "scans").mkdir()
    return room.inference(room.folder / "scans")


@kind("files", "a folder without images", "scans")
def _(room: Room) -> list[object]:
    return room.inference(room.write("scans/notes.txt", "none").parent)


@kind("files", "a folder with nothing but labels", "scans", "label|mask|segmentation")
def _(room: Room) -> list[object]:
    return room.inference(room.copy(room.base.scan, "scans/a_seg.nii.gz").parent)


@kind("files", "a link that points nowhere", r"scan\.nii\.gz", "link|found no")
def _(room: Room) -> list[object]:
    (room.folder / "scan.nii.gz").symlink_to(room.folder / "gone.nii.gz")
    return room.inference(room.folder / "scan.nii.gz")


@kind("files", "a link to itself", r"scan\.nii\.gz")
def _(room: Room) -> list[object]:
    (room.folder / "scan.nii.gz").symlink_to("scan.nii.gz")
    return room.inference(room.folder / "scan.nii.gz")


@kind("files", "a pipe that nobody writes to", r"scan\.nii")
def _(room: Room) -> list[object]:
    os.mkfifo(room.folder / "scan.nii")
    return room.inference(room.folder / "scan.nii")


@kind("files", "Analyze without its image", r"scan\.(hdr|img)")
def _(room: Room) -> list[object]:
    nib.save(nib.AnalyzeImage(room.values(), np.eye(4)), room.folder / "scan.img")
    (room.folder / "scan.img").unlink()
    return room.inference(room.folder / "scan.hdr")


@kind("files", "NRRD cut short", r"scan\.nrrd", seconds=ITK_SECONDS)
def _(room: Room) -> list[object]:
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 40 40 40\nencoding: raw\nendian: little\n\n"
    return room.inference(room.write("scan.nrrd", header.encode() + bytes(1000)))


@kind("files", "MetaImage whose data are elsewhere", r"scan\.mhd", seconds=ITK_SECONDS)
def _(room: Room) -> list[object]:
    header = "ObjectType = Image\nNDims = 3\nDimSize = 40 40 40\nElementType = MET_SHORT\nElementDataFile = gone.raw\n"
    return room.inference(room.write("scan.mhd", header))


@kind("files", "a name that is a number", "7")
def _(room: Room) -> list[object]:
    return room.inference(7)
