"""Tests of custom.inference.inferer."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from custom.inference.inferer import TranslationInferer
from custom.networks.diffusion import draw_noise
from custom.networks.fast import slabs
from custom.networks.fast.workspace import current_workspace

SHAPE = (16, 32, 16)


def images(batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand((batch, 1, *SHAPE), generator=generator) * 2 - 1


class CountingNetwork(torch.nn.Module):
    """Calls of each part; the latent is the image, the sample is target + the first noise value."""

    num_modalities = 4

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.steps: list[int] = []

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        self.calls.append("encode")
        return image

    def transfer(self, latent: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls.append("transfer")
        return latent

    def fuse(self, latent, target_like, target):
        self.calls.append("fuse")
        return latent, target_like

    def sample(self, latent, target_like, target, noise, num_steps=0):
        self.calls.append("sample")
        self.steps.append(num_steps)
        return torch.zeros_like(latent) + target.view(-1, 1, 1, 1, 1) / 10 + noise[:1, :1, :1, :1, :1] / 100

    def render(self, latent: torch.Tensor, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls.append("render")
        return latent


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("targets", ["t2", ["t2", "FLAIR", "t1n"]])
def test_shape(tiny_translator, batch: int, targets) -> None:
    inferer = TranslationInferer(targets)
    prediction = inferer(images(batch), tiny_translator)
    assert prediction.shape == (batch, 1 if targets == "t2" else 3, *SHAPE)
    assert prediction.dtype == torch.float32
    assert not prediction.requires_grad
    assert float(prediction.abs().max()) <= 1


def test_called_by_keywords_as_monai_deploy_does(tiny_translator) -> None:
    inferer, image = TranslationInferer("t2"), images(1)
    result = inferer(inputs=image, network=tiny_translator, foreground=torch.ones_like(image))
    assert torch.equal(result, inferer(image, tiny_translator))


def test_channels_follow_the_targets(tiny_translator) -> None:
    both = TranslationInferer(["flair", "t2"])(images(1), tiny_translator)
    for channel, target in enumerate(["flair", "t2"]):
        alone = TranslationInferer(target)(images(1), tiny_translator)
        assert torch.equal(both[:, channel], alone[:, 0])


def test_equals_the_network_itself(tiny_translator, assert_near) -> None:
    image = images(1)
    with torch.no_grad():
        noise = draw_noise(tiny_translator.encode(image), 5)
        expected = tiny_translator(image, torch.tensor([2]), noise).clamp(-1, 1)
    assert_near(TranslationInferer("t2", seed=5)(image, tiny_translator), expected)


def test_source_is_encoded_once() -> None:
    network = CountingNetwork()
    TranslationInferer(["t1", "t2", "flair"], num_inference_steps=7)(images(1), network)
    assert network.calls.count("encode") == 1
    assert network.calls.count("sample") == network.calls.count("render") == 3
    assert network.steps == [7, 7, 7]


def test_encoding_and_decodings_share_their_memory(tiny_translator, monkeypatch) -> None:
    used = []
    monkeypatch.setattr(slabs, "current_workspace", lambda: used.append(current_workspace()) or used[-1])
    TranslationInferer(["t2", "flair"])(images(1), tiny_translator)
    assert len(used) == 3
    assert all(workspace is used[0] for workspace in used)


def test_batch_equals_single(tiny_translator, assert_near) -> None:
    batch = images(3)
    inferer = TranslationInferer(["t1", "t2"])
    together = inferer(batch, tiny_translator)
    alone = torch.cat([inferer(item[None], tiny_translator) for item in batch])
    assert_near(together, alone)


def test_seed_decides() -> None:
    network = CountingNetwork()
    first = TranslationInferer("t2", seed=1)(images(1), network)
    torch.rand(3)  # the state of the global generator does not matter
    assert torch.equal(first, TranslationInferer("t2", seed=1)(images(1), network))
    assert not torch.equal(first, TranslationInferer("t2", seed=2)(images(1), network))


def test_samples_are_averaged() -> None:
    network = CountingNetwork()
    mean = TranslationInferer("t2", seed=4, num_samples=3)(images(1), network)
    draws = [TranslationInferer("t2", seed=s)(images(1), network) for s in (4, 5, 6)]
    assert torch.allclose(mean, torch.stack(draws).mean(0))


def test_global_random_state_is_left_alone(tiny_translator) -> None:
    state = torch.get_rng_state()
    TranslationInferer("t2")(images(1), tiny_translator)
    assert torch.equal(state, torch.get_rng_state())


def test_scripted_equals_eager(tiny_translator, assert_near) -> None:
    inferer = TranslationInferer(["t1", "flair"], num_inference_steps=3)
    scripted = torch.jit.script(tiny_translator)
    assert_near(inferer(images(1), scripted), inferer(images(1), tiny_translator))


def test_plain_callable() -> None:
    def network(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return image * 0 + target.view(-1, 1, 1, 1, 1) / 10 + torch.rand(1) / 100

    inferer = TranslationInferer(["t1", "flair"])
    prediction = inferer(images(2), network)
    assert prediction.shape == (2, 2, *SHAPE)
    assert torch.allclose(prediction[:, 1], torch.tensor(0.3), atol=0.011)
    assert torch.equal(prediction, inferer(images(2), network))
    with pytest.raises(ValueError, match="fixed number of steps"):
        TranslationInferer("t1", num_inference_steps=3)(images(1), network)


def test_metadata_is_kept(tiny_translator) -> None:
    image = MetaTensor(
        images(1)[0], affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])), meta={"filename_or_obj": "a"}
    )
    prediction = TranslationInferer(["t1", "t2"])(image[None], tiny_translator)
    assert isinstance(prediction, MetaTensor)
    assert torch.equal(prediction.affine, image.affine)


def test_amp_gives_float32_close_to_full_precision(tiny_translator) -> None:
    full = TranslationInferer("t2")(images(1), tiny_translator)
    half = TranslationInferer("t2", amp=True)(images(1), tiny_translator)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert float((half - full).abs().mean()) < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": "pet"}, "expected one or more of t1, t1ce, t2, flair; found 'pet'"),
        ({"targets": []}, "found none"),
        ({"targets": 5}, "expected one or more of t1, t1ce, t2, flair; found 5"),
        ({"targets": "t1", "num_samples": 0}, "num_samples: expected a whole number from 1 to 1000"),
        ({"targets": "t1", "num_inference_steps": -1}, "num_inference_steps: expected"),
        ({"targets": "t1", "num_inference_steps": "many"}, "num_inference_steps: expected .* found 'many'"),
    ],
)
def test_faults_are_found_at_construction(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TranslationInferer(**arguments)


@pytest.mark.parametrize("value", [1.5, True, 10**9, "1.5", -1])
@pytest.mark.parametrize("name", ["num_samples", "num_inference_steps"])
def test_only_whole_numbers_within_bounds(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a whole number from . to 1000; found"):
        TranslationInferer("t1", **{name: value})
    with pytest.raises(ValueError, match="seed: expected a whole number from 0 to"):
        TranslationInferer("t1", seed=1.5)


@pytest.mark.parametrize("steps", [0, "", None])
def test_no_steps_are_the_default_number(steps: object) -> None:
    assert TranslationInferer("t1", num_inference_steps=steps).num_steps == 0


def test_a_label_server_gets_the_fault_from_the_call(label_server) -> None:
    """Its client is told the text of FastAPI's own exception only, and only if no constructor's wrapper hides it."""
    inferer = TranslationInferer("pet")
    with pytest.raises(label_server) as raised:
        inferer(images(1), CountingNetwork())
    assert raised.value.status_code == 400
    assert "expected one or more of t1, t1ce, t2, flair; found 'pet'" in raised.value.detail


def test_a_label_server_answers_with_one_volume(label_server) -> None:
    with pytest.raises(label_server) as raised:
        TranslationInferer(["t1", "t2"])(images(1), CountingNetwork())
    assert raised.value.detail == "target: expected one modality; found ['t1', 't2']. Ask for one after the other."


def test_vocabulary_of_another_size(tiny_translator) -> None:
    with pytest.raises(ValueError, match="expected the 4 of the network; found 3"):
        TranslationInferer("t2", ["t1", "t2", "pd"])(images(1), tiny_translator)
