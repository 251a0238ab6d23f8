"""Tests of custom.training.latents.target_like."""

from __future__ import annotations

import copy
import logging
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from custom.networks import LatentTranslator, ResidualStyleTransfer
from custom.training.latents.cache import StoredLatents, store_array
from custom.training.latents.pairs import LatentPairs, latent_pairs
from custom.training.latents.target_like import pair_number, translate_subjects

CPU = torch.device("cpu")
SHAPE = (8, 4, 4)


def subject(folder: Path, modality: tuple[int, ...] = (0, 2, 3), name: str = "a") -> dict:
    latents = np.random.default_rng(0).normal(size=(len(modality), 4, *SHAPE)).astype(np.float32)
    np.save(folder / f"{name}.npy", latents)
    return {"latents": StoredLatents(folder / f"{name}.npy"), "modality": torch.tensor(modality)}


@pytest.mark.parametrize("count", [2, 3, 4])
def test_pairs_are_numbered_in_order(count: int) -> None:
    pairs = [(s, t) for s in range(count) for t in range(count) if s != t]
    assert [pair_number(s, t, count) for s, t in pairs] == list(range(count * (count - 1)))


@torch.no_grad()
def test_every_pair_is_what_ms_spade_gives(tiny_translator: LatentTranslator, tmp_path: Path) -> None:
    given = subject(tmp_path)
    (found,) = translate_subjects([given], tiny_translator, device=CPU)
    assert found["target_like"].shape == (6, 4, *SHAPE)
    for source in range(3):
        for target in (t for t in range(3) if t != source):
            latent = given["latents"].read(source).unsqueeze(0)
            expected = tiny_translator.transfer(latent, given["modality"][target : target + 1])[0]
            stored = found["target_like"].read(pair_number(source, target, 3))
            torch.testing.assert_close(stored, expected, rtol=1e-3, atol=1e-3)  # half precision


def test_nothing_is_computed_twice_and_other_weights_compute_anew(
    tiny_translator: LatentTranslator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, given = copy.deepcopy(tiny_translator), subject(tmp_path)
    with caplog.at_level(logging.INFO):
        (first,) = translate_subjects([given], network, device=CPU)
    assert "the target-like latents to compute take" in caplog.text
    network.transfer = None
    (again,) = translate_subjects([given], network, device=CPU)
    assert again["target_like"].path == first["target_like"].path
    other = copy.deepcopy(tiny_translator)
    next(other.style_transfer.parameters()).data.zero_()
    (anew,) = translate_subjects([given], other, device=CPU)
    assert anew["target_like"].path != first["target_like"].path
    Path(first["target_like"].path).write_bytes(b"cut short")
    (mended,) = translate_subjects([given], tiny_translator, device=CPU)
    assert mended["target_like"].shape == (6, 4, *SHAPE)


def test_pairs_of_a_training_read_them(tiny_translator: LatentTranslator, tmp_path: Path) -> None:
    (kept,) = translate_subjects([subject(tmp_path)], tiny_translator, device=CPU)
    pairs = LatentPairs([kept], pairs_per_subject=5)
    pairs.set_random_state(seed=0)
    item = pairs[0]
    modality = kept["modality"].tolist()
    for k in range(5):
        t = modality.index(int(item["target_modality"][k]))
        for place, source in enumerate(item["source_modality"][k].tolist()):
            number = pair_number(modality.index(source), t, 3)
            assert torch.equal(item["target_like"][k, place], kept["target_like"].read(number))
    cropped = LatentPairs([kept], pairs_per_subject=2, crop_size=(4, 4, 4))[0]
    assert cropped["target_like"].shape == cropped["source"].shape == (2, 2, 4, 4, 4, 4)
    assert "source_context" in cropped  # which the fusion asks for
    assert not {"target_context", "position"} & set(cropped)


def test_sets_that_exchange_have_none_to_keep(tiny_translator: LatentTranslator, tmp_path: Path) -> None:
    network = copy.deepcopy(tiny_translator)
    network.style_transfer = ResidualStyleTransfer(4, 4, width=8, num_blocks=1, exchange_channels=4)
    with pytest.raises(
        ValueError, match=r"cache_target_like: expected false, .* Leave it out, or train with one source"
    ):
        latent_pairs([], None, network, ["t1", "t2", "flair"], target_like=True)


def test_a_signal_ends_it_after_a_subject_which_is_kept(
    tiny_translator: LatentTranslator, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [subject(tmp_path, name=name) for name in ("a", "b", "c")]

    def signalled(*args: Any) -> None:
        store_array(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("custom.training.latents.target_like.store_array", signalled)
    with pytest.raises(SystemExit) as ended:
        translate_subjects(data, tiny_translator, device=CPU)
    assert ended.value.code == 143
    assert "stopped by SIGTERM while latents were translated. 1 of 3 subjects are done and kept in" in caplog.text
    assert len([*tmp_path.glob("a*_to_*.npy")]) == 1
    assert not [*tmp_path.glob("b*_to_*.npy")]


def test_too_little_room(tiny_translator: LatentTranslator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1})
    monkeypatch.setattr("custom.training.latents.cache.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="Make room, give another --cache_dir, or set --cache_target_like false"):
        translate_subjects([subject(tmp_path)], tiny_translator, device=CPU)


def test_what_is_in_use_is_marked(tiny_translator: LatentTranslator, tmp_path: Path) -> None:
    """So that pruning, which goes by the file's time, leaves it."""
    given = subject(tmp_path)
    (first,) = translate_subjects([given], tiny_translator, device=CPU)
    file = Path(first["target_like"].path)
    os.utime(file, (0, 0))
    translate_subjects([given], tiny_translator, device=CPU)
    assert file.stat().st_mtime > 0
