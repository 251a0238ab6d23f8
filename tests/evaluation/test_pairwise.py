from __future__ import annotations

import pytest
import torch
from torch import nn

from custom.data.foreground import foreground_key
from custom.evaluation.baselines import IntensityLookup, TrainingMean
from custom.evaluation.paired_lookup import PairedLookup
from custom.evaluation.pairwise import PairwiseInferer
from custom.evaluation.rows import (
    CEILING,
    COPY_SOURCE,
    FULL_MODEL,
    LOOKUP,
    PAIRED_LOOKUP,
    SPADE_DECODED,
    SPADE_ONLY,
    TRAINING_MEAN,
)

MODALITIES = ("t1", "t2", "flair")


def inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    images = {}
    for i, name in enumerate(MODALITIES):
        generator = torch.Generator().manual_seed(seed + i)
        images[name] = torch.full((1, 1, 16, 16, 16), -1.0)
        images[name][..., 2:14, 2:14, 2:14] = torch.rand((12, 12, 12), generator=generator) * 1.9 - 0.9
    return images | {foreground_key(name): image > -1 for name, image in images.items()}


def test_stream_of_predictions(toy):
    network = toy().eval()
    images = inputs()
    lookup = IntensityLookup(MODALITIES).fit([{m: v[0] for m, v in images.items() if m != "flair"}])
    mean = TrainingMean(MODALITIES)
    mean.update({key: images[key][0] for key in ("t2", "t2_foreground")})
    inferer = PairwiseInferer(MODALITIES, lookup=lookup, mean=mean)
    predictions = list(inferer(images, network))
    assert len(predictions) == inferer.count(MODALITIES) == 3 + 6 * 3 + 2 + 2
    assert network.calls == {"encode": 3, "transfer": 6, "sample": 6, "decode": 3, "render": 12}
    by_key = {(p.method, p.source, p.target): p.image for p in predictions}
    assert len(by_key) == len(predictions)
    brain = images["t1"] > -1
    torch.testing.assert_close(by_key[CEILING, "t1", "t1"], images["t1"])
    torch.testing.assert_close(by_key[COPY_SOURCE, "t1", "t2"], images["t1"])
    torch.testing.assert_close(by_key[SPADE_ONLY, "t1", "t2"], torch.where(brain, -images["t1"], -1.0))
    torch.testing.assert_close(by_key[FULL_MODEL, "t1", "t2"], torch.where(brain, -images["t1"] / 2, -1.0))
    assert {k[1:] for k in by_key if k[0] == LOOKUP} == {("t1", "t2"), ("t2", "t1")}
    assert {k[1:] for k in by_key if k[0] == TRAINING_MEAN} == {("t1", "t2"), ("flair", "t2")}


def test_ms_spade_is_decoded_by_itself_where_detail_is_transferred(toy):
    network, images = toy().eval(), inputs()
    inferer = PairwiseInferer(MODALITIES, methods=[SPADE_DECODED, SPADE_ONLY])
    assert {p.method for p in inferer(images, network)} == {SPADE_ONLY}
    network.detail = nn.Identity()
    network.render = lambda latent, image, target: network.decode(latent) / 2
    found = {(p.method, p.source, p.target): p.image for p in inferer(images, network)}
    assert len(found) == inferer.count(MODALITIES, network)
    brain = images["t1"] > -1
    torch.testing.assert_close(found[SPADE_DECODED, "t1", "t2"], torch.where(brain, -images["t1"], -1.0))
    torch.testing.assert_close(found[SPADE_ONLY, "t1", "t2"], torch.where(brain, -images["t1"] / 2, -1.0))


def test_methods_sources_seed_and_steps(toy):
    network = toy().eval()
    inferer = PairwiseInferer(MODALITIES, methods=[FULL_MODEL], sources=["T2w"], seed=100, num_steps=7)
    predictions = list(inferer(inputs(), network))
    assert [(p.source, p.target) for p in predictions] == [("t2", "t1"), ("t2", "flair")]
    assert network.calls["encode"] == 1
    assert network.steps == [7, 7]
    assert predictions[0].image.max() == 1.0  # the noise of seed 100 is 10 everywhere; clipped


class FusingTranslator(nn.Module):
    """Latent = image; nothing is changed but that several sources become their mean."""

    def encode(self, image):
        return image.flatten(0, 1)[:, None]

    def transfer(self, latent, target):
        return latent

    def fuse(self, latent, target_like, target):
        fused = latent.unflatten(0, (len(target), -1)).mean(dim=1)
        return fused, fused

    def sample(self, latent, target_like, target, noise, num_steps=0):
        return target_like

    def decode(self, latent):
        return latent

    def render(self, latent, image, target):
        return latent


def test_sets_of_sources():
    images = inputs() | {"pd": inputs(7)["t1"], foreground_key("pd"): inputs(7)["t1"] > -1}
    names = (*MODALITIES, "pd")
    subjects = [{key: value[0] for key, value in images.items() if key.split("_")[0] != "pd"}]
    lookup, paired = IntensityLookup(names).fit(subjects), PairedLookup(names)
    paired.update(subjects[0])
    methods = [LOOKUP, PAIRED_LOOKUP, FULL_MODEL]
    inferer = PairwiseInferer(names, lookup=lookup, paired=paired, methods=methods, set_sizes=[2, 3])
    predictions = list(inferer(images, FusingTranslator()))
    assert len(predictions) == inferer.count(names)
    found = {(p.method, p.source, p.target): p.image for p in predictions if "+" in p.source}
    sets = {t: {s for m, s, u in found if u == t and m == FULL_MODEL} for t in names}
    assert sets["t2"] == {"t1+flair", "t1+pd", "flair+pd", "t1+flair+pd"}
    assert sum(map(len, sets.values())) == 4 * (3 + 1)
    brain = images["t1"] > -1
    both = (images["t1"] + images["flair"]) / 2
    torch.testing.assert_close(found[FULL_MODEL, "t1+flair", "t2"], torch.where(brain, both, -1.0))
    alone = [lookup.predict(images[s], s, "t2", brain=brain) for s in ("t1", "flair")]
    torch.testing.assert_close(found[LOOKUP, "t1+flair", "t2"], (alone[0] + alone[1]) / 2)
    # no training subject had a PD, and of three sources there is no such lookup
    assert {k[1:] for k in found if k[0] == PAIRED_LOOKUP} == {
        ("t1+t2", "flair"),
        ("t1+flair", "t2"),
        ("t2+flair", "t1"),
    }


def test_no_sets_of_a_network_for_one_source_or_where_pairs_are_asked_for():
    for network, pairs in ((lambda image, target: image, None), (FusingTranslator(), [("t1", "t2")])):
        inferer = PairwiseInferer(MODALITIES, methods=[FULL_MODEL], pairs=pairs, set_sizes=[2])
        assert all("+" not in p.source for p in inferer(inputs(), network))


def test_some_pairs_alone():
    """Of a plain callable too, which knows no autoencoder: such as a rival."""
    asked = []

    def network(image, target):
        asked.append(target.tolist())
        return image

    methods = [COPY_SOURCE, FULL_MODEL]
    inferer = PairwiseInferer(MODALITIES, methods=methods, pairs=[("T1", "t2"), ["t2", "flair"]])
    found = [p[:3] for p in inferer(inputs(), network)]
    assert found == [(m, s, t) for s, t in (("t1", "t2"), ("t2", "flair")) for m in methods]
    assert inferer.count(MODALITIES) == len(found)
    assert asked == [[1], [2]]
    for pairs in (["t1,t2"], [["t1"]]):
        with pytest.raises(ValueError, match="scored_pairs: expected a list of pairs of two contrasts each"):
            PairwiseInferer(MODALITIES, pairs=pairs)


def test_amp_gives_float32():
    network = nn.Module()
    network.encode = lambda image: nn.functional.conv3d(image, torch.ones(1, 1, 1, 1, 1))
    network.decode = lambda latent: latent
    (prediction, *_) = PairwiseInferer(MODALITIES, methods=[CEILING], amp=True)(inputs(), network)
    assert prediction.image.dtype == torch.float32
    torch.testing.assert_close(prediction.image, inputs()["t1"], atol=1e-2, rtol=0)
    assert not torch.equal(prediction.image, inputs()["t1"])  # it was in bfloat16


def test_costs_are_those_of_one_translation(toy):
    class Counted(toy):
        def __init__(self) -> None:
            super().__init__()
            self.unet = nn.Identity()

        def sample(self, latent, target_like, target, noise, num_steps=0):
            for _ in range(3):
                self.unet(latent)
            return super().sample(latent, target_like, target, noise, num_steps)

    predictions = list(PairwiseInferer(MODALITIES, num_samples=2)(inputs(), Counted().eval()))
    costs = {method: {p.cost for p in predictions if p.method == method} for method in (SPADE_ONLY, FULL_MODEL)}
    assert {c.evaluations for c in costs[FULL_MODEL]} == {6}
    assert {c.evaluations for c in costs[SPADE_ONLY]} == {0}
    assert all(c.seconds > 0 for c in costs[FULL_MODEL])
    assert all(p.cost is None for p in predictions if p.method == COPY_SOURCE)
    network = Counted().eval()
    list(PairwiseInferer(MODALITIES)(inputs(), network))
    assert not network.unet._forward_pre_hooks  # nothing is left on the network


def test_several_samples_are_averaged_and_their_expected_error_is_known(toy):
    images = inputs()
    predictions = list(PairwiseInferer(MODALITIES, methods=[FULL_MODEL], num_samples=3)(images, toy().eval()))
    prediction = next(p for p in predictions if (p.source, p.target) == ("t1", "t2"))
    samples = torch.stack([(-images["t1"] / 2 + 0.1 * seed).clamp(-1, 1) for seed in range(3)])
    brain = images["t1"] > -1
    torch.testing.assert_close(prediction.image[brain], samples.mean(dim=0)[brain])
    torch.testing.assert_close(prediction.uncertainty[brain], 0.01 + images["t1"][brain].abs() / 10)
    assert (prediction.uncertainty[~brain] == 0).all()
    assert (prediction.image[~brain] == -1).all()


def test_one_method_or_number_needs_no_list():
    inferer = PairwiseInferer(MODALITIES, methods=SPADE_DECODED, sources="t2", set_sizes=2)
    assert (inferer.methods, inferer.sources, inferer.set_sizes) == ((SPADE_DECODED,), ("t2",), [2])
    with pytest.raises(ValueError, match=r"found MS-SPADE decode\. Did you mean MS-SPADE decoded\?"):
        PairwiseInferer(MODALITIES, methods=["MS-SPADE decode"])


def test_clear_errors():
    with pytest.raises(ValueError, match="methods: expected some of copy-source"):
        PairwiseInferer(MODALITIES, methods=["magic"])
    with pytest.raises(ValueError, match="amp: expected true, false or auto; found 'maybe'"):
        PairwiseInferer(MODALITIES, amp="maybe")
    assert PairwiseInferer(MODALITIES, amp="True").amp is True
    with pytest.raises(ValueError, match="found 'pd'"):
        PairwiseInferer(MODALITIES, sources=["pd"])
    with pytest.raises(ValueError, match="num_samples: expected a whole number from 1 to 1000; found 0"):
        PairwiseInferer(MODALITIES, num_samples=0)
