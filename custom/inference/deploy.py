"""An operator for applications of MONAI Deploy, which alone import it: it needs monai-deploy-app-sdk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from monai.deploy.core import Fragment, Operator, OperatorSpec
from monai.deploy.operators import MonaiBundleInferenceOperator

from custom.data.names import translation_name
from custom.inference.dicom_writer import save_synthetic_series
from custom.inference.saver import DeclareSyntheticd
from custom.utils.identity import content_digest

__all__ = ["SyntheticSeriesWriterOperator"]

SERIES = "study_selected_series_list"


class SyntheticSeriesWriterOperator(Operator):
    """Write the bundle's translations of a DICOM series, each as a series that is declared synthetic.

    The SDK hands over bare arrays, without metadata that could say that they are synthetic, and has no writer of
    images.

    Named inputs:
        pred: (K, W, H, D) float32 in [0, 1], of the ``MonaiBundleInferenceOperator``.
        study_selected_series_list: of the ``DICOMSeriesSelectorOperator``; its first series was translated.

    Args:
        fragment: the application.
        args: conditions and resources, as for ``Operator``.
        output_folder: for a folder ``<SeriesInstanceUID>_<target>_synthetic`` of each translation.
        translator: operator that translates; its bundle's transforms hold the records of the last translation.
        kwargs: such as ``name``, as for ``Operator``.

    Raises:
        ValueError: when it runs, for a translation that is not on the series' grid.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        output_folder: str | os.PathLike[str],
        translator: MonaiBundleInferenceOperator,
        **kwargs: Any,
    ) -> None:
        self.output_folder = Path(output_folder)
        self.translator = translator
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("pred")
        spec.input(SERIES)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        prediction = op_input.receive("pred")
        series = op_input.receive(SERIES)[0].selected_series[0].series
        transforms = self.translator.parser.get_parsed_content("postprocessing").transforms
        records = next(t for t in transforms if isinstance(t, DeclareSyntheticd)).records
        with tempfile.TemporaryDirectory() as folder:  # the source's own may hold other series
            for number, instance in enumerate(series.get_sop_instances()):
                file = Path(instance.get_native_sop_instance().filename).resolve()
                (Path(folder) / f"{number:05d}.dcm").symlink_to(file)
            for number, (volume, (target, record)) in enumerate(zip(prediction, records.items(), strict=True), 1):
                path = self.output_folder / translation_name(series.SeriesInstanceUID, target)
                known = {**record, "Sources": [series.SeriesInstanceUID], "SourceSHA": content_digest(folder)}
                save_synthetic_series(torch.from_numpy(volume), path, folder, known, number=number)
