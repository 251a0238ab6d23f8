"""Segmentation of synthetic images by a given model: its Dice on real input against one synthetic image among them.

The model is a bundle of MONAI's Model Zoo whose input channels are MRI contrasts. Its own ``inference.json`` is used:
``network_def``, ``preprocessing``, ``inferer``, ``postprocessing`` without what saves files. A config is code, so only
bundles that are trusted should be given.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, SaveImage, SaveImaged
from torch import Tensor

from custom.utils.modalities import canonical

__all__ = [
    "OF_LABEL_REAL",
    "OF_LABEL_SYNTHETIC",
    "OF_REAL",
    "WHOLE",
    "Segmenter",
    "SegmenterCheck",
    "dice",
    "load_segmenter",
]

WHOLE = "any structure"
OF_LABEL_REAL = "real input against the label"
OF_LABEL_SYNTHETIC = "synthetic input against the label"
OF_REAL = "synthetic input against real input"

IMAGE = "image"
PREDICTION = "pred"


class Segmenter:
    """A segmentation bundle, ready to run.

    Args:
        bundle: folder with ``configs/inference.json`` (or ``yaml``), ``configs/metadata.json``, ``models/model.pt``.
        device: where to run it.
        modalities: contrasts of its input channels, in order; by default what the metadata's ``channel_def`` says.

    Raises:
        FileNotFoundError: for a missing part of the bundle.
        ValueError: if the input channels cannot be told.
    """

    not_in_identity = ("root",)

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        modalities: Sequence[str] | None = None,
    ) -> None:
        self.root = Path(bundle).expanduser().resolve()
        self.device = torch.device(device)
        parser = self._parser()
        self.modalities = [canonical(m) for m in modalities] if modalities else self._channels(parser)
        self.structures = self._structures(parser)
        weights = self._part("models/model.pt")
        self.network = parser.get_parsed_content("network_def").to(self.device).eval()
        self.network.load_state_dict(torch.load(weights, map_location=self.device, weights_only=True))
        self.preprocessing = parser.get_parsed_content("preprocessing")
        self.inferer = parser.get_parsed_content("inferer")
        after = parser.get_parsed_content("postprocessing")
        self.postprocessing = Compose([t for t in after.transforms if not isinstance(t, SaveImaged | SaveImage)])

    @torch.inference_mode()
    def __call__(self, files: Sequence[str | os.PathLike[str]]) -> np.ndarray:
        """Segment the images in ``files``, one a channel; returns masks (structures, H, W, D), bool."""
        item = self.preprocessing({IMAGE: [str(file) for file in files]})
        output = self.inferer(item[IMAGE][None].to(self.device), self.network)
        found = self.postprocessing({**item, PREDICTION: output[0]})[PREDICTION]
        values = np.asarray(found.cpu())
        if values.shape[0] > 1 and len(self.structures) == values.shape[0]:
            return values > 0.5
        # one channel of labels
        return np.stack([values[0] == i for i in range(1, max(int(values.max()), len(self.structures)) + 1)])

    def _parser(self) -> ConfigParser:
        config = next((self.root / f"configs/inference.{s}" for s in ("json", "yaml", "yml")
                       if (self.root / f"configs/inference.{s}").is_file()), None)  # fmt: skip
        config = config or self._part("configs/inference.json")
        parser = ConfigParser()
        parser.read_config(str(config))
        parser.read_meta(str(self._part("configs/metadata.json")))
        parser["bundle_root"] = str(self.root)
        if str(self.root) not in sys.path:
            sys.path.append(str(self.root))  # its own code, such as scripts
        return parser

    def _part(self, name: str) -> Path:
        path = self.root / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: expected a part of a segmentation bundle; found no file. Correct the path."
            )
        return path

    def _channels(self, parser: ConfigParser) -> list[str]:
        tensors = parser.get("_meta_", {}).get("network_data_format", {})
        channels = tensors.get("inputs", {}).get(IMAGE, {}).get("channel_def", {})
        names = [canonical(channels[key]) for key in sorted(channels, key=int)]
        if not names:
            raise ValueError(
                f"{self.root}/configs/metadata.json: expected the contrasts of the input under network_data_format, "
                "inputs, image, channel_def; found none. Give segmenter_modalities."
            )
        return names

    def _structures(self, parser: ConfigParser) -> list[str]:
        tensors = parser.get("_meta_", {}).get("network_data_format", {})
        channels = tensors.get("outputs", {}).get(PREDICTION, {}).get("channel_def", {})
        names = [str(channels[key]) for key in sorted(channels, key=int)]
        return [name for name in names if name.lower() != "background"]


class SegmenterCheck:
    """The check of one subject: segmented once from real images, then with each synthetic one in a real one's place.

    Real and synthetic images enter on one scale, [0, 1] by the protocol, so that only their content differs.

    Args:
        segmenter: the model.
        images: real images (H, W, D) in [0, 1] on the scan's own grid, by modality.
        label: true lesion (H, W, D), or None.
        affine: of the scan's grid.
    """

    def __init__(
        self, segmenter: Segmenter, images: Mapping[str, Tensor], label: Tensor | None, *, affine: Any
    ) -> None:
        self.segmenter = segmenter
        self.images = images
        self.label = None if label is None else np.asarray(label.cpu()).astype(bool)
        self.affine = np.asarray(affine, dtype=np.float64)
        self.missing = [m for m in segmenter.modalities if m not in images]
        self._real: np.ndarray | None = None

    def replaced(self, source: str, target: str, synthetic: Tensor) -> list[list[Any]]:
        """Dice with the real ``target`` replaced: rows ``[source, target, structure, of what, Dice]``.

        Empty where the model does not use the target, or the subject lacks one of the model's contrasts.
        """
        if self.missing or target not in self.segmenter.modalities:
            return []
        if self._real is None:
            self._real = self._segment(self.images)
        found = self._segment({**self.images, target: synthetic})
        names = self.segmenter.structures
        rows = [
            [
                source,
                target,
                names[i] if i < len(names) else f"structure {i + 1}",
                OF_REAL,
                dice(found[i], self._real[i]),
            ]
            for i in range(min(len(found), len(self._real)))
        ]
        whole, real = np.any(found, axis=0), np.any(self._real, axis=0)
        rows.append([source, target, WHOLE, OF_REAL, dice(whole, real)])
        if self.label is not None:
            rows.append([source, target, WHOLE, OF_LABEL_REAL, dice(real, self.label)])
            rows.append([source, target, WHOLE, OF_LABEL_SYNTHETIC, dice(whole, self.label)])
        return rows

    def _segment(self, images: Mapping[str, Tensor]) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{m}.nii.gz" for m in self.segmenter.modalities]
            for file, name in zip(files, self.segmenter.modalities, strict=True):
                nib.save(nib.Nifti1Image(images[name].cpu().numpy().astype(np.float32), self.affine), file)
            return self.segmenter(files)


def load_segmenter(bundle: str | os.PathLike[str] | None, **kwargs: Any) -> Segmenter | None:
    """The :class:`Segmenter` of a folder with its arguments ``kwargs``; None where no folder is given."""
    return Segmenter(bundle, **kwargs) if bundle else None


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """2 |A ∩ B| / (|A| + |B|); 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0
