"""Data sets: layouts, datalists, files to translate, and how translations are saved."""

from custom.data.datalist import (
    ensure_phantom,
    load_datalist,
    read_datalist,
    split_by_subject,
    vocabulary,
    write_datalist,
)
from custom.data.inputs import TolerantDataset, inference_inputs
from custom.data.latent_cache import LatentCache, prune_latents
from custom.data.latents import cat_collate, encode_subjects, latent_pairs, measure_latent_scale, style_pairs
from custom.data.layouts import LAYOUTS, Layout, discover
from custom.data.provenance import Provenance, pending_inputs
from custom.data.readers import read_volume
from custom.data.sampling import RandModalityd, RandModalityPaird, single_images, translation_pairs
from custom.data.saver import DeclareSyntheticd, SaveImageTranslationsd

__all__ = [
    "LAYOUTS",
    "DeclareSyntheticd",
    "LatentCache",
    "Layout",
    "Provenance",
    "RandModalityPaird",
    "RandModalityd",
    "SaveImageTranslationsd",
    "TolerantDataset",
    "cat_collate",
    "discover",
    "encode_subjects",
    "ensure_phantom",
    "inference_inputs",
    "latent_pairs",
    "load_datalist",
    "measure_latent_scale",
    "pending_inputs",
    "prune_latents",
    "read_datalist",
    "read_volume",
    "single_images",
    "split_by_subject",
    "style_pairs",
    "translation_pairs",
    "vocabulary",
    "write_datalist",
]
