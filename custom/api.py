"""The front door for Python: a :class:`Translator` from the bundle's weights and its ``inference.json``.

.. code-block:: python

    from custom import Translator

    translator = Translator.load()
    t2 = translator("scan_t1.nii.gz", "t2")
    t2 = translator(["scan_t1.nii.gz", "scan_flair.nii.gz"], "t2")
    translator.save(t2, "scan_t2.nii.gz")
"""

from __future__ import annotations

import copy
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, SaveImaged
from torch import nn

from custom.data.names import PROVENANCE_KEY, RECORDS_KEY
from custom.data.readers import volume_of_image
from custom.data.sets import sources_of
from custom.inference.inputs import inference_inputs
from custom.inference.provenance import Provenance, check_replaceable, uncertainty_record
from custom.inference.saver import save_synthetic
from custom.utils.bundle import bundle_folder
from custom.utils.errors import user_errors
from custom.utils.modalities import canonical
from custom.utils.options import check_places
from custom.utils.precision import checked_device

__all__ = ["Translator", "WithUncertainty"]

CONFIG = Path("configs", "inference.json")
WEIGHTS = Path("models", "model.pt")
ZIPPED = (str(CONFIG), "configs/metadata.json", str(WEIGHTS))  # of an artifact; its code is not run
MOST_UNPACKED = 2**33  # bytes: the weights of the paper's preset are a tenth of it
OF_A_CALL = ("seed", "num_samples", "num_inference_steps", "amp", "volume_size", "align", "uncertainty")
TARGET = "target"
IS_UNCERTAINTY = "is_uncertainty"


class WithUncertainty(NamedTuple):
    """A translation, and the absolute error that is to be expected at each voxel, in its units; (1, H, W, D) each."""

    image: MetaTensor
    uncertainty: MetaTensor


Result = MetaTensor | WithUncertainty


class _Place(NamedTuple):
    """Where configs and weights are."""

    root: Path
    weights: Path


class Translator:
    """Translates scans of a brain as ``inference.json`` does, voxel for voxel; made by :meth:`load`.

    Attributes:
        modalities: the contrasts that it translates from and into, canonical names in the network's order.
        network: the ``LatentTranslator``, in evaluation mode.
    """

    def __init__(self, parser: ConfigParser) -> None:
        if not isinstance(parser, ConfigParser):
            raise TypeError(
                f"Translator: expected a parsed inference.json; found {parser!r}. Translator.load(BUNDLE) makes one "
                "of a bundle's folder, its zip or a file of weights."
            )
        self._parser = parser
        self.network: nn.Module = parser.get_parsed_content("network").eval()
        self.modalities: list[str] = [canonical(m) for m in parser.get_parsed_content("modalities")]

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        *,
        device: torch.device | str | None = None,
        **settings: Any,
    ) -> Translator:
        """A translator with the weights of a bundle.

        Args:
            bundle: a bundle's folder or zip, whose configs and weights are used, or a ``.pt`` file of weights for the
                configs beside this package. By default the bundle beside this package: ``bundle/`` of the repository,
                or the unpacked bundle that holds the package. An installation of the package alone has no weights.
            device: to compute on; by default a GPU where there is one.
            settings: keys of ``inference.json``, such as ``seed``, ``num_samples``, ``num_inference_steps``, ``amp``,
                ``volume_size``, ``align`` or ``uncertainty``.

        Raises:
            FileNotFoundError: where there are no configs or weights.
            ValueError: for weights of another network, an unknown setting, or a device that is not there.
        """
        with tempfile.TemporaryDirectory() as folder:
            place = _find(bundle, Path(folder))
            parser = ConfigParser()
            parser.read_config(str(place.root / CONFIG))
            _check_settings(parser, settings)
            parser.update({"bundle_root": str(place.root), "ckpt_path": str(place.weights), **settings})
            if device is not None:
                parser["device"] = checked_device(device)
            with user_errors():
                return cls(parser)

    def __call__(self, image: Any, targets: str | Sequence[str], **settings: Any) -> Result | dict[str, Result]:
        """Translate one scan, or several of one subject together.

        Args:
            image: path of a scan (any format that the command line reads); a nibabel or ITK image; or a ``MetaTensor``
                (H, W, D) or (1, H, W, D) with its affine, in the scanner's units. A list of these holds the sources of
                one subject, in any order.
            targets: a contrast, or several: the sources are encoded once for all of them.
            settings: for this call: ``seed``, ``num_samples``, ``num_inference_steps``, ``amp``, ``volume_size``;
                ``align=True`` registers sources that lie on another grid than the finest of them; ``uncertainty=True``
                asks for the error that is to be expected.

        Returns:
            (1, H, W, D) float32 in [0, 1] on the scan's own grid, with its affine; for several targets a dictionary of
            them by name. The metadata says that it is synthetic, and of which contrast. With ``uncertainty`` a
            :class:`WithUncertainty` in place of each image.

        Raises:
            FileNotFoundError, ValueError: for a scan that is missing or cannot be translated, an unknown target,
                sources that cannot be one subject's, or ``uncertainty`` of weights whose error map was not trained.
        """
        with user_errors():
            return self._translate(image, targets, settings)

    def _translate(
        self, image: Any, targets: str | Sequence[str], settings: dict[str, Any]
    ) -> Result | dict[str, Result]:
        if not isinstance(targets, str | list | tuple) or not all(isinstance(target, str) for target in targets):
            raise ValueError(f"targets: expected a contrast or a list of contrasts; found {targets!r}. Name them.")
        names = [targets] if isinstance(targets, str) else list(targets)
        preprocessing, inferer, postprocessing = self._parts(names, settings)
        provenance = Provenance(self.network, preprocessing, inferer=inferer, postprocessing=postprocessing)
        given = self._given(image, inferer.targets, provenance)
        item = preprocessing({"image": given})
        source = item["image"]
        source.meta[PROVENANCE_KEY] = provenance.of(given)
        parameter = next(self.network.parameters())
        prediction = inferer(source.as_tensor()[None].to(parameter.device), self.network)[0]
        item["pred"] = MetaTensor(prediction, meta=source.meta, applied_operations=source.applied_operations)
        kept = [t for t in postprocessing.transforms if not isinstance(t, SaveImaged)]
        channels = Compose(kept)(item)["pred"]
        found = {target: _result(channels, inferer.targets, target) for target in inferer.targets}
        return found[inferer.targets[0]] if isinstance(targets, str) else found

    def _given(self, image: Any, targets: Sequence[str], provenance: Provenance) -> Any:
        """What the preprocessing is given: a path or an image, or the sources of one subject in an order of their own.

        Files are in the order that the command line has them in, so that both give the same voxels.
        """
        if not isinstance(image, list | tuple):
            return str(image) if isinstance(image, str | os.PathLike) else volume_of_image(image)
        if all(isinstance(source, str | os.PathLike) for source in image):
            [item] = inference_inputs(list(image), modalities=self.modalities, targets=targets)
            return item["image"]
        sources = [str(s) if isinstance(s, str | os.PathLike) else volume_of_image(s) for s in image]
        return sorted(sources, key=provenance.content)

    def save(self, image: MetaTensor, path: str | os.PathLike[str]) -> Path:
        """Write a translation as NIfTI, marked as synthetic, with the header of its source where that is NIfTI.

        Args:
            image: of a call, or its uncertainty.
            path: file to write, ``.nii`` or ``.nii.gz``; its folder is made. An earlier translation is replaced.

        Raises:
            ValueError: for another suffix, an image that no call gave, or a file there that is no translation.
        """
        file = Path(path).expanduser()
        if not re.fullmatch(r".+\.nii(\.gz)?", file.name, re.IGNORECASE):
            raise ValueError(f"{file}: expected a name that ends with .nii or .nii.gz; found {file.name!r}. Rename it.")
        if not isinstance(image, MetaTensor) or image.meta.get(TARGET) not in image.meta.get(RECORDS_KEY, ()):
            raise ValueError(
                f"image: expected one translation, as a call gives it; found {type(image).__name__} without the "
                "mark that it is synthetic. Of several targets save one after the other."
            )
        for source in map(Path, sources_of(image.meta)):
            if file.exists() and source.exists() and file.samefile(source):
                raise ValueError(
                    f"{file}: expected another file than the scan itself; found its path. Choose another name."
                )
        check_replaceable(file)
        record = image.meta[RECORDS_KEY][image.meta[TARGET]]
        if image.meta.get(IS_UNCERTAINTY):
            record = uncertainty_record(record)
        save_synthetic(image[0], file, str(image.meta.get("filename_or_obj", "")), image.meta, record)
        return file

    def _parts(self, targets: Sequence[str], settings: dict[str, Any]) -> tuple[Compose, Any, Compose]:
        """Preprocessing, inferer and postprocessing of a call, as the config describes them."""
        _check_settings(self._parser, settings, OF_A_CALL)
        parser = ConfigParser(copy.deepcopy(self._parser.get()))
        parser.update({"targets": list(targets), **settings})
        preprocessing, inferer, postprocessing = (
            parser.get_parsed_content(key) for key in ("preprocessing", "inferer", "postprocessing")
        )
        return preprocessing, inferer, postprocessing


def _result(channels: MetaTensor, targets: Sequence[str], target: str) -> Result:
    """Of the channels (K or 2 K, H, W, D) of a prediction those of one target."""
    number, meta = targets.index(target), {**channels.meta, TARGET: target}
    image = MetaTensor(channels.as_tensor()[number][None], meta=meta)
    if len(channels) == len(targets):
        return image
    error = channels.as_tensor()[len(targets) + number][None]
    return WithUncertainty(image, MetaTensor(error, meta={**meta, IS_UNCERTAINTY: True}))


def _check_settings(parser: ConfigParser, settings: Mapping[str, Any], known: Sequence[str] = ()) -> None:
    """Refuse settings that are not among ``known``, by default the keys of the config."""
    unknown = [key for key in settings if key.partition("#")[0] not in (known or parser.get())]
    if unknown:
        named = known or [k for k, v in parser.get().items() if k[0] != "_" and not isinstance(v, dict | list)]
        raise ValueError(f"{unknown[0]}: expected one of {', '.join(named)}; found another setting. Correct it.")
    check_places(parser.get(), settings)


def _find(bundle: str | os.PathLike[str] | None, folder: Path) -> _Place:
    """Configs and weights; those of a zip are unpacked into ``folder``."""
    if bundle is None:
        root = bundle_folder()
        return _Place(root, root / WEIGHTS)
    place = Path(bundle).expanduser()
    if place.is_file() and place.suffix.lower() == ".zip":
        return _unpacked(place, folder)
    if place.is_file():
        return _Place(bundle_folder(), place)
    if (place / CONFIG).is_file():
        return _Place(place, place / WEIGHTS)
    raise FileNotFoundError(
        f"{place}: expected a bundle's folder (with {CONFIG} and {WEIGHTS}), its zip, or a .pt file of weights; found "
        f"{'none of them in the folder' if place.is_dir() else 'nothing there'}. Correct the path."
    )


def _unpacked(archive: Path, folder: Path) -> _Place:
    try:
        with zipfile.ZipFile(archive) as content:
            names = content.namelist()
            top = names[0].partition("/")[0] if names else ""
            if top in ("", ".", "..") or "\\" in top:
                raise ValueError(f"{archive}: expected a bundle in one folder; found {names[:1]}. Replace the file.")
            missing = [name for name in ZIPPED if f"{top}/{name}" not in names]
            if missing:
                raise FileNotFoundError(f"{archive}: expected a bundle with {missing[0]}; found no such file in it.")
            if (size := sum(content.getinfo(f"{top}/{name}").file_size for name in ZIPPED)) > MOST_UNPACKED:
                raise ValueError(f"{archive}: expected at most {MOST_UNPACKED:,} bytes in it; found {size:,}.")
            for name in ZIPPED:
                content.extract(f"{top}/{name}", folder)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive}: expected a bundle's zip; found {error}. Replace the file.") from error
    return _Place(folder / top, folder / top / WEIGHTS)
