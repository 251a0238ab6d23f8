"""Tests of custom.commands.steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor

import custom.commands.steps
from custom.commands.steps import CURVES, PAIRS, Curve, Model, _share_frozen_parts, measure, steps
from custom.data.datalist import ensure_phantom, read_datalist
from custom.data.foreground import BACKGROUND, foreground_key
from custom.inference.inferer import TranslationInferer
from custom.networks import LatentTranslator
from custom.reports.curves import SPADE_ONLY, Point
from custom.utils.modalities import BRATS_MODALITIES

CPU = torch.device("cpu")
DDIM = Curve("DDIM", (1, 2))
ALL = [
    DDIM,
    Curve("DDPM", (1, 2), eta=1.0),
    Curve("part", (2,), strength=0.5),
    Curve("codes", (2,), requantize=True),
    Curve("mean", (2,), num_samples=3),
]


@pytest.fixture
def make_network(tiny_translator: LatentTranslator) -> Callable[[], LatentTranslator]:
    """Gives equal translators whose UNet predicts something: untrained, it predicts zeros, whatever the steps."""

    def make() -> LatentTranslator:
        network, generator = deepcopy(tiny_translator), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.unet.conv_out.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        return network

    return make


@pytest.fixture
def network(make_network: Callable[[], LatentTranslator]) -> LatentTranslator:
    return make_network()


@pytest.fixture
def subject(head) -> dict[str, Tensor | str]:
    """A preprocessed subject with every modality."""
    images = {m: torch.from_numpy(head((32, 32, 16), seed=i)) for i, m in enumerate(BRATS_MODALITIES)}
    masks = {foreground_key(m): (image > 0)[None] for m, image in images.items()}
    return {"subject": "a", **masks, **{m: (image / 450 - 1).clamp(-1, 1)[None] for m, image in images.items()}}


def run(subject: dict, models: list[Model], curves: list[Curve], **kwargs) -> list[Point]:
    return list(
        measure(subject, ("t1", "t2"), BRATS_MODALITIES, lambda x, key: x[0], models, curves, device=CPU, **kwargs)
    )


class Calls(Counter):
    """Counts the calls of a network's parts."""

    def __init__(self, network, monkeypatch) -> None:
        super().__init__()
        for owner, name in (
            (network, "encode"),
            (network, "transfer"),
            (network, "decode_translated"),
            (network.unet, "forward"),
        ):
            monkeypatch.setattr(owner, name, self.counted(name, getattr(owner, name)))

    def counted(self, name: str, function):
        def call(*args, **kwargs):
            self[name] += 1
            return function(*args, **kwargs)

        return call


def test_nothing_is_done_twice(network, subject, monkeypatch) -> None:
    calls = Calls(network, monkeypatch)
    points = run(subject, [Model("m", network)], ALL)
    assert len(points) == 1 + sum(len(curve.steps) for curve in ALL)
    # DDIM 1 and 2, DDPM 2 (its single step is DDIM's), part 2, codes 2, the second and third sample of the mean
    assert calls["forward"] == 1 + 2 + 2 + 2 + 2 + 2 * 2
    assert (calls["encode"], calls["transfer"]) == (1, 1)
    # MS-SPADE, DDIM 1 and 2, DDPM 2, part, codes, two more samples
    assert calls["decode_translated"] == 8


def test_points_equal_the_inferer(network, subject) -> None:
    """Each curve is what a user of that sampler gets."""
    points = run(subject, [Model("m", network)], ALL, seed=3)
    image = subject["t1"][None]
    mse = {}
    for curve in ALL:
        network.eta, network.strength, network.requantize = curve.eta, curve.strength, curve.requantize
        for count in curve.steps:
            inferer = TranslationInferer(
                "t2", seed=3, num_samples=curve.num_samples, num_inference_steps=count, amp=False
            )
            found = torch.where(subject["t1_foreground"], inferer(image, network), BACKGROUND)
            error = ((found - subject["t2"][None]) / 2)[subject["t2_foreground"][None]]
            mse[curve.name, count] = error.square().mean()
    for point in points[1:]:
        expected = -10 * torch.log10(mse[point.sampler, point.steps]).item()
        assert point.psnr == pytest.approx(expected, abs=1e-3), point


def test_the_network_s_own_sampler_is_left_as_it_is(network, subject) -> None:
    run(subject, [Model("m", network)], [Curve("other", (2,), eta=1.0, strength=0.5, requantize=True)])
    assert (network.eta, network.strength, network.requantize) == (0.0, 1.0, False)


def test_evaluations_are_those_of_the_network(network, subject) -> None:
    found = {(p.sampler, p.steps): p.evaluations for p in run(subject, [Model("m", network)], ALL)}
    assert found == {
        (SPADE_ONLY, 0): 0, ("DDIM", 1): 1, ("DDIM", 2): 2, ("DDPM", 1): 1, ("DDPM", 2): 2, ("part", 2): 2,
        ("codes", 2): 2, ("mean", 2): 6,
    }  # fmt: skip


def test_seconds_are_those_from_the_source_on(network, subject) -> None:
    found = {
        (p.sampler, p.steps): p.seconds
        for p in run(subject, [Model("m", network)], [DDIM, Curve("mean", (1,), num_samples=9)])
    }
    assert found[SPADE_ONLY, 0] > 0
    assert found["mean", 1] > found["DDIM", 1]


def test_models_share_what_is_frozen(network, make_network, subject, monkeypatch) -> None:
    other = make_network()
    _share_frozen_parts(network, other)
    assert other.autoencoder is network.autoencoder
    assert other.style_transfer is network.style_transfer
    assert other.unet is not network.unet
    calls = Calls(network, monkeypatch)
    monkeypatch.setattr(other, "encode", lambda image: pytest.fail("encoded again"))
    points = run(subject, [Model("m", network), Model("other", other)], [DDIM])
    assert calls["encode"] == 1
    assert [p.psnr for p in points if p.model == "m"] == [p.psnr for p in points if p.model == "other"]


def test_models_with_other_latents_share_nothing(network, make_network) -> None:
    other = make_network()
    with torch.no_grad():
        other.autoencoder.quant_conv.conv.bias.add_(1)
    _share_frozen_parts(network, other)
    assert other.autoencoder is not network.autoencoder


def test_curves_are_those_of_the_overlays() -> None:
    found = {name: Curve.of(name, *curve) for name, curve in CURVES.items()}
    assert found["DDIM"] == Curve("DDIM", CURVES["DDIM"][1])
    assert found["DDPM (η = 1)"].eta == 1
    assert found["from the target-like latent"].strength == 0.5
    assert found["re-quantised"].requantize
    assert found["mean of 4 samples"].num_samples == 4


def test_every_modality_is_a_source_and_a_target_once() -> None:
    assert sorted(s for s, _ in PAIRS) == sorted(t for _, t in PAIRS) == sorted(BRATS_MODALITIES)


@pytest.mark.slow
def test_command(tmp_path: Path, capsys) -> None:
    data = ensure_phantom(tmp_path / "data", counts=(1, 2, 1), spacing=6.0)
    bad, good = read_datalist(data / "datalist.json")["validation"]
    Path(bad["flair"]).write_bytes(b"no image")
    parser = ConfigParser()
    parser.read_config(str(Path(__file__).parents[2] / "bundle" / "configs" / "inference.json"))
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    points = steps(
        tmp_path / "out", subjects=2, curves={"DDIM": [2, 1]}, amp=False, dataset_dir=str(data),
        ckpt_path=str(tmp_path / "model.pt"), device="$torch.device('cpu')",
    )  # fmt: skip
    assert [(p.subject, p.steps) for p in points] == [(good["subject"], count) for count in (0, 1, 2)]
    names = {"steps.csv", "steps.png", *(f"steps_table.{suffix}" for suffix in ("csv", "md", "tex", "txt"))}
    assert names <= {p.name for p in (tmp_path / "out").iterdir()}
    assert "Within 0.05 dB of the best brain PSNR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ("detail", {"detail": []}),
        (("ours", "epsilon"), {"ours": ["ablation_no_detail"], "epsilon": ["sampling_epsilon"]}),
    ],
)
def test_models_of_an_ablation(tmp_path: Path, monkeypatch, models, expected: dict[str, list[str]]) -> None:
    """Each with the overlay it was trained with and its own weights."""
    made: list[tuple[list[str], str]] = []

    class Workflow:
        def initialize(self) -> None:
            pass

    def make(name: str, values: dict, *, overlays: list[str] = ()) -> Workflow:
        made.append((list(overlays), values["ckpt_path"]))
        return Workflow()

    monkeypatch.setattr(custom.commands.steps, "bundle_workflow", make)
    found = custom.commands.steps._workflows(tmp_path, models, {"ckpt_path": "of another model"})
    assert [name for name, _ in found] == list(expected)
    assert made == [(overlays, str(tmp_path / name / "model.pt")) for name, overlays in expected.items()]


def test_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"models: expected some of .*rectified_flow; found flow"):
        steps(tmp_path / "out", models_dir=tmp_path, models="flow")


def test_unknown_curve(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"curves: expected some of DDIM.*found Heun"):
        steps(tmp_path, curves={"Heun": [1]})
    assert not list(tmp_path.iterdir())
