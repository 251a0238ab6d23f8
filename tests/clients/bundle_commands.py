"""The commands of ``python -m monai.bundle``, and what its documentation does in Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from harness import Check, Context, expect
from volumes import check_grid, check_translation, difference, in_ras

from custom.data.readers import read_volume
from custom.inference.dicom_writer import MAXIMUM, SYNTHETIC_DATA

__all__ = ["run"]

NAME = "brain_mri_modality_translation"
TARGETS = ("t2", "flair")
SCANS = ("las", "lps", "dicom")
# Turned axes change neither a voxel's value nor its neighbours: the same float32 operations in the same order. The
# largest difference seen is 0; this leaves room for percentiles that another order of the voxels interpolates.
TURNED = 1e-5
# An exported network takes the plain convolutions, which sum in another order than the quick ones. Seen: 0.014 of the
# range [-1, 1] where a code of the quantiser changes with it, and 9e-6 in the mean.
EXPORTED_MAX, EXPORTED_MEAN = 0.05, 1e-4
QUICK = {"max_epochs": 1, "val_interval": 1, "warmup_steps": 1, "cache_workers": 0}
STAGES = {
    "train_autoencoder": {"crop_size": [32, 32, 32], "crops_per_subject": 1},
    "train_spade": {"latent_crop": [8, 8, 8]},
    "train": {"latent_crop": [8, 8, 8], "pairs_per_subject": 1},
}

LOAD = """
import json, sys
import torch
from monai.bundle import create_workflow, load
folder, name, image, out = sys.argv[1:]
network = load(name, bundle_dir=folder, workflow_type="inference").eval()
workflow = create_workflow(
    config_file=f"{folder}/{name}/configs/inference.json", workflow_type="inference", image=image, targets=["t2"],
    output_dir=out,
)
workflow.run()
import custom
state = torch.load(f"{folder}/{name}/models/model.pt", weights_only=True)
same = all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
print(json.dumps({"custom": custom.__file__, "same": same}))
"""
COMPARE = """
import json, sys
import torch
from monai.bundle import load
folder, name, scripted, traced, onnx_file, shape = sys.argv[1:]
network = load(name, bundle_dir=folder, workflow_type="inference").eval()
image = torch.nn.functional.avg_pool3d(torch.rand([1, 1, *json.loads(shape)]), 5, stride=1, padding=2) * 4 - 2
image = image.clamp(-1, 1)
target = torch.tensor([2])
found = {}
def compare(name, result, expected):
    gap = (result - expected).abs()
    found[name] = [float(gap.max()), float(gap.mean())]
with torch.no_grad():
    noise = torch.randn_like(network.encode(image))
    expected = network(image, target, noise)
    compare("scripted", torch.jit.load(scripted)(image, target, noise), expected)
    torch.manual_seed(1)
    drawn = network(image, target)
    torch.manual_seed(1)
    compare("traced", torch.jit.load(traced)(image), drawn)
import onnx, onnxruntime
session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
(result,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
# its noise is its own: close to a translation with other noise, and by far closer than to another target's
result = torch.from_numpy(result)
compare("onnx", result, expected)
with torch.no_grad():
    compare("onnx, another target", result, network(image, torch.tensor([3]), noise))
print(json.dumps(found))
"""


def run(context: Context) -> Iterator[Check]:
    """Download, translation of every kind of scan, loading, exports, training and evaluation."""
    check = partial(context.check, "bundle_commands")
    room = context.room("bundle_commands")
    bundle = room / "down loaded" / NAME  # the repository's documentation has no spaces
    yield check("download", lambda: _download(context, bundle))
    for name in SCANS:
        yield check(f"run inference, {name}", lambda name=name: _translate(context, bundle, name, room / name))
    yield check("the same head gives the same, however its axes lie", lambda: _same_head(room))
    yield check("run inference, DICOM written", lambda: _write_dicom(context, bundle, room))
    yield check("an empty path is refused in one line", lambda: _empty_path(context, bundle))
    yield check("load, create_workflow", lambda: _load(context, bundle, room))
    yield check("exports give the network's values", lambda: _exports(context, bundle, room))
    for stage in STAGES:
        yield check(f"run training, {stage}", lambda stage=stage: _train(context, bundle, stage))
    yield check("run evaluating", lambda: _evaluate(context, bundle))


def _download(context: Context, bundle: Path) -> None:
    context.bundle_command("download", name=NAME, url=context.artifact.as_uri(), bundle_dir=bundle.parent)
    expect((bundle / "configs/inference.json").is_file(), f"nothing at {bundle}")


def _infer(context: Context, bundle: Path, image: Any, out: Path, expected: int = 0, **options: Any) -> str:
    return context.bundle_command(
        "run", "inference", config_file=bundle / "configs/inference.json", image=image, output_dir=out,
        expected=expected, **options,
    )  # fmt: skip


def _results(folder: Path) -> dict[str, Path]:
    return {target: next(folder.glob(f"*_{target}_synthetic.nii.gz")) for target in TARGETS}


def _translate(context: Context, bundle: Path, name: str, out: Path) -> str:
    source = getattr(context.scans, name)
    _infer(context, bundle, source, out, targets=list(TARGETS))
    original, said = read_volume(source), []
    for target, path in _results(out).items():
        image = nib.load(path)
        said.append(f"{target} {check_translation(image)}")
        check_grid(image, original.affine.numpy(), tuple(original.shape[1:]))
        text = bytes(image.header["descrip"].item()).decode()
        expect(text.startswith(f"SYNTHETIC {target} from {NAME} v"), f"header: {text!r}")
    return ", ".join(said)


def _same_head(room: Path) -> str:
    first, found = _results(room / SCANS[0]), 0.0
    for name in SCANS[1:]:
        for target, path in _results(room / name).items():
            found = max(found, difference(in_ras(path), in_ras(first[target])))
    expect(found <= TURNED, f"{found:.3g} apart")
    targets = difference(*map(nib.load, first.values()))
    expect(targets > 0.05, f"the targets are only {targets:.3g} apart")
    return f"at most {found:.3g} apart"


def _write_dicom(context: Context, bundle: Path, room: Path) -> None:
    _infer(context, bundle, context.scans.dicom, room / "dicom out", targets=["t2"], output_format="dicom")
    (folder,) = (room / "dicom out").iterdir()
    back, nifti = read_volume(folder), nib.load(_results(room / "dicom")["t2"])
    check_grid(nifti, back.affine.numpy(), tuple(back.shape[1:]))
    gap = float(np.abs(back[0].numpy() / MAXIMUM - nifti.get_fdata(dtype=np.float32)).max())
    expect(gap <= 0.51 / MAXIMUM, f"{gap:.3g} apart from the NIfTI result")  # half a step of the stored integers
    header = pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True)
    expect(header[SYNTHETIC_DATA].value == "YES", "not declared as synthetic")


def _empty_path(context: Context, bundle: Path) -> str:
    said = _infer(context, bundle, "", context.room("elsewhere") / "none", expected=1)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    expect(len(lines) == 1 and "image: expected a file" in lines[0] and "Traceback" not in said, said[-500:])
    expect(not (bundle / "data").exists(), "phantoms were made")
    return lines[0]


def _load(context: Context, bundle: Path, room: Path) -> None:
    out = room / "workflow"
    said = context.python("-c", LOAD, bundle.parent, NAME, context.scans.las, out)
    report = json.loads(said.splitlines()[-1])
    expect(report["custom"] == str(bundle / "custom" / "__init__.py"), f"custom is {report['custom']}")
    expect(report["same"], "the loaded weights are not those of the file")
    gap = difference(nib.load(next(out.glob("*.nii.gz"))), nib.load(_results(room / "las")["t2"]))
    expect(gap == 0, f"{gap:.3g} apart from the command's result")


def _exports(context: Context, bundle: Path, room: Path) -> str:
    config = {"config_file": bundle / "configs/inference.json", "bundle_root": bundle}
    files = {name: room / f"model.{name}" for name in ("ts", "traced.ts", "onnx")}
    fixed = {"network_def#default_target": 2}
    shape = [48, 32, 32]
    context.bundle_command("ckpt_export", filepath=files["ts"], **config)
    context.bundle_command("ckpt_export", filepath=files["traced.ts"], use_trace=True, **config, **fixed)
    context.bundle_command(
        "onnx_export", net_id="network_def", filepath=files["onnx"], meta_file=bundle / "configs/metadata.json",
        ckpt_file=bundle / "models/model.pt", input_shape=[1, 1, *shape], **config, **fixed,
    )  # fmt: skip
    said = context.python("-c", COMPARE, bundle.parent, NAME, *files.values(), json.dumps(shape))
    found = json.loads(said.splitlines()[-1])
    for name in ("scripted", "traced"):
        largest, mean = found[name]
        expect(largest <= EXPORTED_MAX and mean <= EXPORTED_MEAN, f"{name}: {largest:.3g} apart, mean {mean:.3g}")
    near, far = found["onnx"][1], found["onnx, another target"][1]
    expect(near < 0.2 * far, f"ONNX: mean {near:.3g} from its target, {far:.3g} from another")
    return ", ".join(f"{name} {largest:.2g} (mean {mean:.2g})" for name, (largest, mean) in found.items())


def _train(context: Context, bundle: Path, stage: str) -> None:
    before = (bundle / "models/model.pt").read_bytes()
    context.bundle_command(
        "run", "training", config_file=bundle / f"configs/{stage}.json", dataset_dir=context.phantoms, **QUICK,
        **STAGES[stage],
    )  # fmt: skip
    folder = {"train_autoencoder": "autoencoder", "train_spade": "spade", "train": "diffusion"}[stage]
    for name in ("best.pt", "last.pt"):
        expect((bundle / "output" / folder / name).is_file(), f"no {folder}/{name}")
    expect((bundle / "models/model.pt").read_bytes() == before, "the bundle's own weights changed")
    expect((bundle / "output/model.pt").is_file() == (stage == "train"), f"model.pt after {stage}")


def _evaluate(context: Context, bundle: Path) -> None:
    context.bundle_command(
        "run", "evaluating", config_file=bundle / "configs/evaluate.json", dataset_dir=context.phantoms,
        pairs=[["t1", "t2"]],
    )  # fmt: skip
    reports = [path.name for path in (bundle / "output").rglob("report.html")]
    expect(reports == ["report.html"], f"reports: {reports}")
