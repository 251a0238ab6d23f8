"""Data sets: layouts, datalists, files to translate, and how translations are saved."""

from custom.data.datalist import (
    ensure_phantom,
    load_datalist,
    read_datalist,
    split_by_subject,
    write_datalist,
)
from custom.data.inputs import TolerantDataset, inference_inputs
from custom.data.layouts import LAYOUTS, Layout, discover, discover_brats2021
from custom.data.saver import SaveTranslationsd

__all__ = [
    "LAYOUTS",
    "Layout",
    "SaveTranslationsd",
    "TolerantDataset",
    "discover",
    "discover_brats2021",
    "ensure_phantom",
    "inference_inputs",
    "load_datalist",
    "read_datalist",
    "split_by_subject",
    "write_datalist",
]
