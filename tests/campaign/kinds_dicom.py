"""Bad DICOM series."""

from __future__ import annotations

import shutil
from typing import Any

from kinds import kind
from pydicom.uid import generate_uid
from rooms import Room


def series(room: Room, change: Any = None, keep: Any = None) -> list[object]:
    return room.inference(room.series(change, keep=keep))


def setting(**attributes: Any) -> Any:
    """A change of every slice; a function is called for its value."""

    def change(one: Any, index: int) -> None:
        for keyword, value in attributes.items():
            setattr(one, keyword, value(index) if callable(value) else value)

    return change


@kind("dicom", "a missing slice", "series", "missing|gap|spac|distance")
def _(room: Room) -> list[object]:
    return series(room, keep=lambda index: index != 15)


@kind("dicom", "one slice of a series", "series", "rest of the series|slice")
def _(room: Room) -> list[object]:
    return series(room, keep=lambda index: index == 15)


@kind("dicom", "a copy of a slice", "series", "duplicate|copy|twice|same")
def _(room: Room) -> list[object]:
    folder = room.series()
    shutil.copy(folder / "i004.dcm", folder / "i004 (1).dcm")
    return room.inference(folder)


@kind("dicom", "a series exported twice", "series", "duplicate|copy|twice|same")
def _(room: Room) -> list[object]:
    folder = room.series()
    for file in room.series(setting(SOPInstanceUID=lambda i: generate_uid()), name="again").iterdir():
        shutil.copy(file, folder / f"again_{file.name}")
    return room.inference(folder)


@kind("dicom", "two echoes in one series", "series", "echo")
def _(room: Room) -> list[object]:
    folder = room.series(setting(EchoTime=5.0))
    second = room.series(setting(EchoTime=15.0, SOPInstanceUID=lambda i: generate_uid()), name="second")
    for file in second.iterdir():
        shutil.copy(file, folder / f"b_{file.name}")
    return room.inference(folder)


@kind("dicom", "a mosaic", "mosaic", "dcm2niix")
def _(room: Room) -> list[object]:
    return series(room, setting(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]), keep=lambda index: index == 0)


@kind("dicom", "another series UID on each slice", "series", "UID|anonym")
def _(room: Room) -> list[object]:
    return series(room, setting(SeriesInstanceUID=lambda i: generate_uid()))


@kind("dicom", "no position", "series", "[Pp]osition")
def _(room: Room) -> list[object]:
    return series(room, lambda one, index: one.__delattr__("ImagePositionPatient"))


@kind("dicom", "no orientation", "series", "[Oo]rientation")
def _(room: Room) -> list[object]:
    return series(room, lambda one, index: one.__delattr__("ImageOrientationPatient"))


@kind("dicom", "no pixel spacing", "series", "[Ss]pacing")
def _(room: Room) -> list[object]:
    return series(room, lambda one, index: one.__delattr__("PixelSpacing"))


@kind("dicom", "no pixels", "series", "pixel|image is not there")
def _(room: Room) -> list[object]:
    return series(room, lambda one, index: one.__delattr__("PixelData"))


@kind("dicom", "fewer pixels than promised", "series", "pixel|short|bytes|cut")
def _(room: Room) -> list[object]:
    return series(room, lambda one, index: setattr(one, "PixelData", one.PixelData[:-400]) if index == 5 else None)


@kind("dicom", "a slice of another size", "series", "size|rows|columns|voxels|grid|shape")
def _(room: Room) -> list[object]:
    def change(one: Any, index: int) -> None:
        if index == 5:
            one.Rows, one.PixelData = one.Rows - 1, one.PixelData[: -2 * one.Columns]

    return series(room, change)


@kind("dicom", "a slice that is turned", "series", "orientation|parallel|turned|direction")
def _(room: Room) -> list[object]:
    change = setting(ImageOrientationPatient=lambda i: [0, 1, 0, 0, 0, 1] if i == 5 else [1, 0, 0, 0, 1, 0])
    return series(room, change)


@kind("dicom", "two series in one folder", "series", "series")
def _(room: Room) -> list[object]:
    folder, other = room.series(), generate_uid()
    change = setting(SeriesInstanceUID=other, SOPInstanceUID=lambda i: generate_uid())
    for file in room.series(change, name="second").iterdir():
        shutil.copy(file, folder / f"b_{file.name}")
    return room.inference(folder / "i003.dcm")


@kind("dicom", "a file cut short", "series", "cut|short|damaged|read|end|pixel")
def _(room: Room) -> list[object]:
    folder = room.series()
    path = folder / "i005.dcm"
    path.write_bytes(path.read_bytes()[:700])
    return room.inference(folder)


@kind("dicom", "CT in place of MR", "series", "CT|MR")
def _(room: Room) -> list[object]:
    return series(room, setting(Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2"))


@kind("dicom", "colours", "series", "colour|color|RGB|MONOCHROME|channel|sample")
def _(room: Room) -> list[object]:
    def change(one: Any, index: int) -> None:
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, "RGB", 0
        one.BitsAllocated = one.BitsStored = 8
        one.HighBit = 7
        one.PixelData = bytes(3 * one.Rows * one.Columns)

    return series(room, change)
