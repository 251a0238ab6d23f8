"""What clients of the unpacked zip do, from ``/`` and without the repository: commands, exports, loading.

The bundle is that of ``tests/fixtures/artifact.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from custom.commands.package import BUNDLE_NAME
from custom.data.datalist import ensure_phantom
from custom.networks import LatentTranslator
from custom.networks.weights import load_weights
from tests.fixtures.artifact import untrained
from tests.fixtures.documents import commands, options, the_block

SAME = 1e-4  # of the largest value: exported networks take the plain convolutions, whose sums have another order
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network(bundle: Path) -> LatentTranslator:
    """The bundle's network in this process, with the bundle's weights."""
    return load_weights(untrained(bundle / "configs/inference.json"), bundle / "models/model.pt").eval()


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of small phantoms, one a section."""
    return ensure_phantom(tmp_path_factory.mktemp("data") / "phantom", counts=(1, 1, 1), spacing=5.0)


@pytest.fixture(scope="module")
def scan(scans: Path) -> Path:
    return next(scans.glob("*/*_t1.nii.gz"))


@pytest.fixture(scope="module")
def phantom(scan: Path) -> torch.Tensor:
    """A part (1, 1, 16, 16, 16) of a phantom, in [-1, 1]."""
    values = torch.from_numpy(nib.load(scan).get_fdata(dtype=np.float32))
    middle = [(n - 16) // 2 for n in values.shape]
    part = values[tuple(slice(m, m + 16) for m in middle)][None, None]
    assert part.std() > 0
    return 2 * part / part.max() - 1


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.randn((1, 32, 4, 4, 4), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def client(bundle: Path, elsewhere: Callable) -> Callable[..., str]:
    """``client("run", "inference", config="inference", key=value)`` → output of the ``monai.bundle`` command."""

    def run(*command: str, config: str | None = None, expect: int = 0, **options: object) -> str:
        chosen = {"config_file": bundle / "configs" / f"{config}.json"} if config else {}
        flags = [str(part) for key, value in (chosen | options).items() for part in (f"--{key}", value)]
        return elsewhere("monai.bundle", *command, *flags, expect=expect)

    return run


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


class TestWorkflows:
    """``run`` finds the bundle by its config's path; nothing is written to the bundle."""

    def test_training(self, client, bundle, scans, tmp_path, network) -> None:
        before = files_in(bundle)
        client(
            "run", "training", config="train", dataset_dir=scans, output_dir=tmp_path,
            spade_path=bundle / "models/model.pt", ckpt_path=tmp_path / "model.pt", latent_crop=[4, 4, 4],
            part_size=4, max_epochs=1, val_interval=1, cache_workers=0, warmup_steps=1, amp=False,
        )  # fmt: skip
        trained = torch.load(tmp_path / "model.pt", weights_only=True)
        assert trained.keys() == network.state_dict().keys()
        assert trained["latent_scale"] != network.latent_scale
        assert files_in(bundle) == before

    def test_inference_and_run_workflow(self, client, bundle, scan, tmp_path) -> None:
        options = {"image": scan, "targets": "['t2','flair']", "config": "inference"}
        before = files_in(bundle)
        client("run", "inference", output_dir=tmp_path / "a b", **options)
        client(
            "run_workflow", output_dir=tmp_path / "second", workflow_name="ConfigWorkflow", workflow_type="inference",
            run_id="inference", **options,
        )  # fmt: skip
        source = nib.load(scan)
        for target in ("t2", "flair"):
            name = scan.name.replace(".nii.gz", f"_{target}_synthetic.nii.gz")
            first, second = nib.load(tmp_path / "a b" / name), nib.load(tmp_path / "second" / name)
            assert first.shape == source.shape
            np.testing.assert_array_equal(first.affine, source.affine)
            np.testing.assert_array_equal(first.get_fdata(), second.get_fdata())
            assert first.get_fdata().any()
        assert files_in(bundle) == before

    def test_evaluating(self, client, scans, tmp_path) -> None:
        client(
            "run", "evaluating", config="evaluate", dataset_dir=scans, output_dir=tmp_path, num_figures=0,
            lookup_subjects=1, sources="['t1']",
        )  # fmt: skip
        assert any("full model" in path.read_text() for path in tmp_path.rglob("*.csv"))


class TestZoo:
    """The Model Zoo's checks of a contribution; of its files and metadata see test_package.py."""

    def test_network_in_and_out(self, client, bundle) -> None:
        client(
            "verify_net_in_out", config="inference", net_id="network_def", bundle_root=bundle,
            meta_file=bundle / "configs/metadata.json",
        )  # fmt: skip

    def test_missing_bundle_root_is_named(self, client, bundle) -> None:
        errors = client(
            "verify_net_in_out", config="inference", net_id="network_def",
            meta_file=bundle / "configs/metadata.json", expect=1,
        )  # fmt: skip
        assert "bundle_root: expected the folder of the bundle, which holds configs/ and custom/; found '.'" in errors
        assert "Add --bundle_root FOLDER." in errors


@pytest.fixture
def documented(bundle: Path, elsewhere: Callable, tmp_path: Path) -> Callable[..., Path]:
    """``documented("model.ts")`` → what the command of the documents that writes a file of this name has written."""

    def run(name: str, **others: object) -> Path:
        (command,) = (c for c in commands(the_block("onnx_export")) if options(c)["filepath"] == name)
        words = [word.replace("$BUNDLE", str(bundle)) for word in command[command.index("-m") + 1 :]]
        flags = {"filepath": tmp_path / name, **others}
        elsewhere(*words, *(str(part) for key, value in flags.items() for part in (f"--{key}", value)))
        return tmp_path / name

    return run


class TestExport:
    """What the documents' commands export gives the same as the network, for the same image, target and noise."""

    def test_scripted(self, documented, bundle, network, phantom, noise, assert_near) -> None:
        exported = torch.jit.load(documented("model.ts"))
        exported.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True), strict=True)
        larger = torch.nn.functional.pad(phantom, [0, 16], value=-1.0)
        for image, start in ((phantom, noise), (larger, noise.repeat(1, 1, 1, 1, 2))):
            for target in (torch.tensor([1]), torch.tensor([3])):
                with torch.no_grad():
                    expected = network(image, target, start)
                    assert_near(exported(image, target, start), expected, tolerance=SAME)

    def test_traced(self, documented, network, phantom, assert_near) -> None:
        exported = torch.jit.load(documented("traced.ts"))
        for image in (phantom, torch.nn.functional.pad(phantom, [0, 16], value=-1.0)):
            torch.manual_seed(5)  # of the noise that the traced network draws
            with torch.no_grad():
                result = exported(image)
                torch.manual_seed(5)
                assert_near(result, network(image, torch.tensor([2])), tolerance=SAME)

    def test_onnx(self, documented, network, phantom, noise, assert_near) -> None:
        model = onnx.load(documented("model.onnx", input_shape=list(phantom.shape)))
        take_noise_as_input(model, noise.shape)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (result,) = session.run(["pred"], {"image": phantom.numpy(), "noise": noise.numpy()})
        with torch.no_grad():
            expected = network(phantom, torch.tensor([2]), noise)
        assert_near(torch.from_numpy(result), expected, tolerance=SAME)


def take_noise_as_input(model: onnx.ModelProto, shape: torch.Size) -> None:
    """Replace the ONNX graph's node that draws the noise by an input ``noise``, for a result that can be compared."""
    (draw,) = (node for node in model.graph.node if node.op_type.startswith("RandomNormal"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("noise", onnx.TensorProto.FLOAT, list(shape)))
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == draw.output[0]:
                node.input[position] = "noise"
    model.graph.node.remove(draw)


_LOAD = """
import json, sys
import torch
from monai.bundle import create_workflow, load
folder, name, data, scan, image, result = sys.argv[1:]
inputs = torch.load(image, weights_only=True)
outputs = []
for kind in ("train", "inference"):
    with torch.no_grad():
        outputs.append(load(name, bundle_dir=folder, workflow_type=kind).eval()(*inputs))
torch.save(outputs, result)
import custom
missing = {}
training = {"cache_workers": 0, "amp": False, "latent_crop": [4, 4, 4]}
for kind, extra in (("train_autoencoder", {**training, "crop_size": [16, 16, 16]}), ("train_spade", training),
                    ("train", training), ("inference", {"image": scan})):
    workflow = create_workflow(
        config_file=f"{folder}/{name}/configs/{kind}.json", workflow_type=kind.partition("_")[0], dataset_dir=data,
        **extra,
    )
    missing[kind] = workflow.check_properties()
    assert workflow.bundle_root == f"{folder}/{name}", workflow.bundle_root
print(json.dumps({"custom": custom.__file__, "missing": missing}))
"""


def test_download_load_and_create_workflow(
    client, elsewhere, artifact, network, phantom, noise, scans, scan, tmp_path, assert_near
) -> None:
    folder = tmp_path / "down loaded"
    client("download", name=BUNDLE_NAME, url=artifact.as_uri(), bundle_dir=folder)
    inputs = (phantom, torch.tensor([3]), noise)
    torch.save(inputs, tmp_path / "inputs.pt")
    (tmp_path / "client.py").write_text(_LOAD)
    said = elsewhere(
        tmp_path / "client.py", folder, BUNDLE_NAME, scans, scan, tmp_path / "inputs.pt", tmp_path / "outputs.pt"
    )
    report = json.loads(said.strip().splitlines()[-1])
    assert report["missing"] == {"train_autoencoder": [], "train_spade": [], "train": [], "inference": []}
    assert report["custom"] == str(folder / BUNDLE_NAME / "custom" / "__init__.py")
    for output in torch.load(tmp_path / "outputs.pt", weights_only=True):
        with torch.no_grad():
            assert_near(output, network(*inputs), tolerance=SAME)


_NEIGHBOUR = {
    "bundle_root": ".",
    "imports": ["$import torch"],
    "network_def": {"_target_": "scripts.nets.Scale", "factor": 3.0},
    "initialize": [],
    "run": ["$@network_def(torch.ones(2))"],
}
_SCRIPT = """
import torch

class Scale(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return self.factor * x
"""
_BOTH = """
import sys
import torch
from monai.bundle import create_workflow, load
folder, name, neighbours, image, result, first = sys.argv[1:]
inputs = torch.load(image, weights_only=True)
sys.path.insert(0, f"{neighbours}/neighbour")  # as its own documentation would ask for

def ours():
    with torch.no_grad():
        return load(name, bundle_dir=folder, workflow_type="inference").eval()(*inputs)

def theirs():
    network = load("neighbour", bundle_dir=neighbours, workflow_type="train")
    flow = create_workflow(config_file=f"{neighbours}/neighbour/configs/train.json")
    (ran,) = flow.run()
    assert type(network).__module__ == "scripts.nets", type(network)
    assert torch.equal(ran, network(torch.ones(2)))
    return ran.detach()

order = [ours, theirs, ours, theirs] if first == "ours" else [theirs, ours, theirs, ours]
torch.save([call() for call in order], result)
"""


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_second_bundle_in_the_process(
    elsewhere, bundle, network, phantom, noise, tmp_path, first, assert_near
) -> None:
    root = tmp_path / "neighbour"
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    (root / "scripts").mkdir()
    (root / "scripts" / "__init__.py").touch()
    (root / "scripts" / "nets.py").write_text(_SCRIPT)
    (root / "configs" / "train.json").write_text(json.dumps(_NEIGHBOUR))
    shutil.copy(bundle / "configs/metadata.json", root / "configs")
    torch.save({"factor": torch.tensor(3.0)}, root / "models" / "model.pt")
    inputs = (phantom, torch.tensor([1]), noise)
    torch.save(inputs, tmp_path / "inputs.pt")
    (tmp_path / "client.py").write_text(_BOTH)
    elsewhere(
        tmp_path / "client.py", bundle.parent, BUNDLE_NAME, tmp_path, tmp_path / "inputs.pt", tmp_path / "outputs.pt",
        first,
    )  # fmt: skip
    outputs = torch.load(tmp_path / "outputs.pt", weights_only=True)
    with torch.no_grad():
        expected = network(*inputs)
    for output in outputs[first != "ours" :: 2]:
        assert_near(output, expected, tolerance=SAME)
    for output in outputs[first == "ours" :: 2]:
        assert output.tolist() == [3.0, 3.0]
