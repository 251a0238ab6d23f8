"""The App SDK of MONAI Deploy: the application of the documentation, and what its operator hands over."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from environments import METADATA, Environment
from harness import Check, Context, expect

from custom.data.readers import read_volume
from custom.inference.dicom_writer import MAXIMUM
from custom.inference.provenance import NAME

__all__ = ["run"]

MONAI = json.loads(METADATA.read_text(encoding="utf-8"))["monai_version"]
DEPLOY = Environment(
    "deploy",
    (
        "tritonclient[http]==2.73.0",
        "colorama==0.4.6",
        "typeguard==4.6.1",
        "highdicom==0.28.2",
        "cloudpickle",
        "wheel-axle-runtime",
    ),
    # without what they ask for in their turn: CUDA packages, and a command line for containers. The SDK lies in the
    # folder of MONAI's package, which must therefore be this environment's own.
    ("--ignore-installed", f"monai=={MONAI}", "monai-deploy-app-sdk==4.0.0", "holoscan-cu13==4.6.0"),
    imports=("monai.deploy.operators",),
)
# A scripted network takes the plain convolutions, which sum in another order than the quick ones. Seen: 2e-6 on these
# scans, and 0.014 on others, where a code of the quantiser changes with it, with 9e-6 in the mean.
# The codes of version 0.3.0 lie closer together: 0.037 and 4e-4 were seen; a quarter of a grey level of 255 is allowed.
SCRIPTED_MAX, SCRIPTED_MEAN = 0.05, 1e-3
WARNED = "it does not say how its axes lie in the patient"

# An application without the bundle's code on Python's path: a series, or a NIfTI file as an image with its affine.
BARE = """
import sys
from pathlib import Path
import nibabel as nib
import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, Image, IOType, Operator
from monai.deploy.operators import (
    DICOMDataLoaderOperator, DICOMSeriesSelectorOperator, DICOMSeriesToVolumeOperator, IOMapping,
    MonaiBundleInferenceOperator,
)

bundle, scan, space, out = sys.argv[1:]


class Source(Operator):
    def setup(self, spec):
        spec.output("image")

    def compute(self, op_input, op_output, context):
        image = nib.load(scan)
        affine = image.affine if space == "RAS" else np.diag([-1, -1, 1, 1]) @ image.affine
        meta = {"affine": affine, "space": space} if space else {}
        op_output.emit(Image(image.get_fdata(dtype=np.float32), meta), "image")


class Keep(Operator):
    def setup(self, spec):
        spec.input("pred")

    def compute(self, op_input, op_output, context):
        np.save(out, op_input.receive("pred"))


class Translate(Application):
    def compose(self):
        translator = MonaiBundleInferenceOperator(
            self, app_context=Application.init_app_context([]), bundle_path=Path(bundle), name="translator",
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", np.ndarray, IOType.IN_MEMORY)],
        )
        once = CountCondition(self, 1)
        if Path(scan).is_dir():
            loader = DICOMDataLoaderOperator(self, once, input_folder=Path(scan), name="loader")
            selector = DICOMSeriesSelectorOperator(self, rules="", name="selector")
            source = DICOMSeriesToVolumeOperator(self, affine_lps_to_ras=space == "RAS", name="volume")
            self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
            self.add_flow(selector, source, {("study_selected_series_list", "study_selected_series_list")})
        else:
            source = Source(self, once, name="source")
        self.add_flow(source, translator, {("image", "image")})
        self.add_flow(translator, Keep(self, name="keep"), {("pred", "pred")})


Translate([]).run()
"""


class Deploy:
    """The bundle in both forms, and what the command line makes of the scans."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.room = context.room("deploy")
        self.bundle = context.bundle
        self.scripted = self.room / "model.ts"

    def command_line(self, scan: Path, output_format: str = "nifti") -> Path:
        """The translation of a scan by ``python -m monai.bundle run``, made once."""
        folder = self.room / f"command_line_{output_format}"
        stem = scan.name.removesuffix(".nii.gz")
        path = folder / (f"{stem}_t2_synthetic" + ".nii.gz" * (output_format == "nifti"))
        if not path.exists():
            config = self.bundle / "configs" / "inference.json"
            options = {"output_dir": folder, "output_format": output_format}
            self.context.bundle_command("run", "inference", config_file=config, image=scan, **options)
        return path

    def bare(self, scan: Path, space: str) -> tuple[np.ndarray, str]:
        """What the operator hands over for a scan, with the unpacked bundle, and what was printed."""
        out = self.room / "pred.npy"
        out.unlink(missing_ok=True)
        code = f"import sys; sys.stderr = sys.stdout\n{BARE}"
        said = self.context.python("-c", code, self.bundle, scan, space, out, environment=DEPLOY)
        expect(out.is_file(), f"nothing was handed over: {said[-2000:]}")
        return np.load(out), said

    def equals_command_line(self, scan: Path, space: str) -> str:
        pred, said = self.bare(scan, space)
        expected = nib.load(self.command_line(scan)).get_fdata(dtype=np.float32)
        expect(pred.dtype == np.float32 and pred.shape == (1, *expected.shape), f"found {pred.dtype} {pred.shape}")
        largest = float(np.abs(pred[0] - expected).max())
        expect(largest == 0, f"differs by up to {largest:.3g}")
        expect(WARNED not in said, "warned of axes that are known")
        return f"the same to the bit, up to {pred.max():.3g}"

    def unknown_axes(self) -> str:
        _, said = self.bare(self.context.scans.lps, "")
        expect(WARNED in said, f"expected a warning; found: {said[-1000:]}")
        return "warned"

    def application(self, form: Path) -> str:
        """The documentation's application writes one series, as the command line does, and declares it."""
        (code,) = re.findall(
            r"```python\n(import sys\n.*?)```", (self.bundle / "docs" / "clients.md").read_text(), re.S
        )
        app, out = self.room / "app.py", self.room / f"out_{form.suffix[1:]}"
        app.write_text(code)
        series = self.context.scans.dicom
        self.context.python(app, form, series, out, environment=DEPLOY, PYTHONPATH=str(self.bundle))
        (folder,) = out.iterdir()
        expect(folder.name.endswith("_t2_synthetic"), f"found {folder.name}")
        for file in folder.iterdir():
            header = pydicom.dcmread(file, stop_before_pixels=True)
            declared = (header[0x0008, 0x001C].value, header.ImageType[0], header.ManufacturerModelName)
            expect(declared == ("YES", "DERIVED", "latent diffusion"), f"{file.name}: found {declared}")
            expect(header.SeriesDescription.startswith("SYNTHETIC T2 from"), header.SeriesDescription)
            expect(header.Manufacturer == NAME, f"found {header.Manufacturer}")
            said = header.ContributingEquipmentSequence[1].ContributionDescription
            expect("WeightsSHA" in said and "SourceSHA" in said and "Seed 0" in said, f"found {said!r}")
        written, expected = (read_volume(path) for path in (folder, self.command_line(series, "dicom")))
        expect(np.allclose(written.affine, expected.affine, atol=1e-3), f"moved to {written.affine.tolist()}")
        gap = np.abs(written.numpy() - expected.numpy()) / MAXIMUM
        largest, mean = (SCRIPTED_MAX, SCRIPTED_MEAN) if form.suffix else (0, 0)
        expect(gap.max() <= largest and gap.mean() <= mean, f"differs by up to {gap.max():.3g}, mean {gap.mean():.3g}")
        return f"differs by up to {gap.max():.3g}, mean {gap.mean():.3g}"

    def export(self) -> str:
        config = self.bundle / "configs" / "inference.json"
        self.context.bundle_command("ckpt_export", config_file=config, bundle_root=self.bundle, filepath=self.scripted)
        return f"{self.scripted.stat().st_size / 1e6:.0f} MB"


def run(context: Context) -> Iterator[Check]:
    """Both forms of the bundle on scans with axes that lie in different ways."""
    deploy, scans = Deploy(context), context.scans
    for name, scan, space in (
        ("an oblique series", scans.dicom, "RAS"),
        ("an oblique series with LPS asked for", scans.dicom, "LPS"),
        ("an LPS image", scans.lps, "LPS"),
        ("an LAS image", scans.las, "RAS"),
    ):
        check = f"unpacked, {name}: the command line's voxels"
        yield context.check("deploy", check, lambda scan=scan, space=space: deploy.equals_command_line(scan, space))
    yield context.check("deploy", "unpacked, an image without an affine: a warning", deploy.unknown_axes)
    yield context.check("deploy", "unpacked, the application of clients.md", lambda: deploy.application(deploy.bundle))
    yield context.check("deploy", "ckpt_export", deploy.export)
    yield context.check(
        "deploy", "scripted, the application of clients.md", lambda: deploy.application(deploy.scripted)
    )
