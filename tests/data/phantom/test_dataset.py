"""The phantom: reproducible, looks like MRI where it can be said in a sentence, laid out as BraTS 2021."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom.data.phantom.anatomy import load_template, node_count, random_field, sample_maps, spline_upsample
from custom.data.phantom.dataset import PhantomSubject, generate_subject, write_dataset
from custom.data.phantom.lesions import draw_plan
from custom.data.phantom.signal_equations import (
    SEQUENCES,
    TISSUES,
    Scan,
    draw_relaxation,
    draw_scan,
    longitudinal,
    transverse,
)
from custom.utils.modalities import BRATS_MODALITIES

SPACING = 4.0
SEEDS = range(12)


@pytest.fixture(scope="module")
def subjects() -> list[PhantomSubject]:
    return [generate_subject(seed, spacing=SPACING) for seed in SEEDS]


@pytest.fixture(scope="module")
def tumour() -> PhantomSubject:
    """A subject with enough of every tumour label, at 2 mm."""
    for seed in range(40):
        subject = generate_subject(seed, spacing=SPACING)
        if all((subject.seg == label).sum() > 15 for label in (1, 2, 4)):
            return generate_subject(seed, spacing=2.0)
    pytest.fail("no subject with a tumour of three labels among 40 seeds")


def signal(modality: str, tissue: str, seed: int = 0) -> float:
    """Signal of a tissue without texture, noise and bias."""
    rng = np.random.default_rng(seed)
    relaxation = draw_relaxation(rng, field=seed % 2)
    scan, drawn = draw_scan(modality, rng, relaxation), relaxation[tissue]
    t1, t2 = np.array(drawn.t1[0]), np.array(drawn.t2[0])
    return float(drawn.pd * longitudinal(scan, t1, drawn.uptake) * transverse(scan, t2))


# --- the subject ------------------------------------------------------------------------------------------------------


def test_shapes_and_types(subjects: list[PhantomSubject]) -> None:
    subject = subjects[0]
    assert tuple(subject.volumes) == BRATS_MODALITIES
    for volume in subject.volumes.values():
        assert volume.shape == (60, 60, 39)
        assert volume.dtype == np.int16
    assert subject.seg.shape == (60, 60, 39)
    assert subject.seg.dtype == np.uint8
    assert nib.aff2axcodes(subject.affine) == ("L", "P", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(subject.affine), SPACING)


def test_own_grid() -> None:
    subject = generate_subject(0, ("t1",), shape=(50, 56, 40), spacing=SPACING)
    assert subject.volumes["t1"].shape == subject.seg.shape == (50, 56, 40)


@pytest.mark.slow
def test_default_grid_is_that_of_brats() -> None:
    subject = generate_subject(0, ("t2",))
    assert subject.volumes["t2"].shape == (240, 240, 155)
    assert 0.12 < np.mean(subject.volumes["t2"] > 0) < 0.24
    np.testing.assert_array_equal(subject.affine, [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])


def test_same_seed_same_subject(subjects: list[PhantomSubject]) -> None:
    again = generate_subject(3, spacing=SPACING)
    for modality, volume in subjects[3].volumes.items():
        np.testing.assert_array_equal(again.volumes[modality], volume)
    np.testing.assert_array_equal(again.seg, subjects[3].seg)


def test_other_seed_other_subject(subjects: list[PhantomSubject]) -> None:
    assert not np.array_equal(subjects[0].volumes["t1"] > 0, subjects[1].volumes["t1"] > 0)


def test_a_contrast_does_not_depend_on_the_others(subjects: list[PhantomSubject]) -> None:
    alone = generate_subject(2, ("FLAIR", "pd"), spacing=SPACING)
    assert tuple(alone.volumes) == ("flair", "pd")
    np.testing.assert_array_equal(alone.volumes["flair"], subjects[2].volumes["flair"])


def test_background_is_zero_and_shared(subjects: list[PhantomSubject]) -> None:
    for subject in subjects:
        brain = subject.volumes["t1"] > 0
        assert 0.10 < brain.mean() < 0.25
        for volume in subject.volumes.values():
            np.testing.assert_array_equal(volume > 0, brain)
            assert volume.min() == 0
        assert not subject.seg[~brain].any()


def test_head_sizes_vary(subjects: list[PhantomSubject]) -> None:
    shares = [float((s.volumes["t1"] > 0).mean()) for s in subjects]
    assert max(shares) - min(shares) > 0.03


def test_lesions_in_most_subjects(subjects: list[PhantomSubject]) -> None:
    assert set(np.unique(np.stack([s.seg for s in subjects]))) == {0, 1, 2, 4}
    kinds = [draw_plan(np.random.default_rng(seed)).kind for seed in range(200)]
    assert set(kinds) == {"high", "low", "ms", "none"}
    assert 0.1 * len(kinds) < kinds.count("none") < 0.25 * len(kinds)


# --- contrasts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("modality", "order"),
    [
        ("t1", ("csf", "grey", "white")),
        ("t1ce", ("csf", "grey", "white", "enhancing")),
        ("t2", ("white", "grey", "oedema", "csf")),
        ("flair", ("csf", "white", "grey", "oedema")),
        ("pd", ("white", "grey")),
    ],
)
def test_order_of_tissues(modality: str, order: tuple[str, ...], seed: int) -> None:
    values = [signal(modality, tissue, seed) for tissue in order]
    assert values == sorted(values)


def test_only_the_agent_makes_the_rim_bright() -> None:
    assert signal("t1", "enhancing") < signal("t1", "white")
    assert signal("t1ce", "enhancing") > 1.1 * signal("t1ce", "white")


def test_equations_in_the_limits() -> None:
    times = np.array([500.0, 1000.0])
    np.testing.assert_allclose(longitudinal(Scan(1e9, 0.0, None, False), times), 1.0)
    np.testing.assert_allclose(transverse(Scan(1e9, 0.0, None, False), times), 1.0)
    nulled = Scan(1e9, 0.0, 1000.0 * np.log(2.0), False)
    np.testing.assert_allclose(longitudinal(nulled, times)[1], 0.0, atol=1e-9)
    plain, agent = Scan(500.0, 10.0, None, False), Scan(500.0, 10.0, None, True)
    np.testing.assert_array_equal(longitudinal(plain, times, 0.5), longitudinal(plain, times))
    assert (longitudinal(agent, times, 0.5) > longitudinal(plain, times)).all()


def test_tumour_looks_like_one(tumour: PhantomSubject) -> None:
    brain = tumour.volumes["t1"] > 0
    value = {
        (modality, label): np.median(volume[brain & (tumour.seg == label)]) / np.median(volume[brain])
        for modality, volume in tumour.volumes.items()
        for label in (0, 1, 2, 4)
    }
    assert value["t1ce", 4] > 1.15 * value["t1", 4]
    assert value["t1ce", 4] > value["t1ce", 1]
    for modality in ("flair", "t2"):
        assert value[modality, 2] > 1.1 * value[modality, 0]
    assert value["t1", 2] < value["t1", 0]


def test_fluid_is_bright_on_t2_and_dark_elsewhere(subjects: list[PhantomSubject]) -> None:
    for subject in subjects:
        healthy = (subject.volumes["t1"] > 0) & (subject.seg == 0)
        fluid = healthy & (subject.volumes["t2"] >= np.percentile(subject.volumes["t2"][healthy], 98.5))
        for modality in ("t1", "flair"):
            volume = subject.volumes[modality]
            assert np.median(volume[fluid]) < 0.6 * np.median(volume[healthy])


# --- tools ------------------------------------------------------------------------------------------------------------


def test_upsampling_keeps_linear_functions() -> None:
    shape, step = (11, 14, 9), 4.0
    nodes = [(np.arange(node_count(n, step)) - 1) * step for n in shape]
    values = nodes[0][:, None, None] + 2 * nodes[1][None, :, None] - nodes[2][None, None, :]
    x, y, z = np.indices(shape)
    np.testing.assert_allclose(spline_upsample(values, shape, step), x + 2 * y - z, atol=1e-4)
    box = (slice(2, 7), slice(0, 5), slice(3, 9))
    np.testing.assert_allclose(spline_upsample(values, shape, step, box), (x + 2 * y - z)[box], atol=1e-4)


def test_random_field_has_unit_variance() -> None:
    field = random_field(np.random.default_rng(0), (40, 41, 42), 3.0)
    assert field.shape == (40, 41, 42)
    assert abs(field.std() - 1) < 0.1
    assert abs(field.mean()) < 0.1


def test_sampling_is_trilinear() -> None:
    maps = np.random.default_rng(0).random((5, 6, 7, 3), dtype=np.float32)
    got = sample_maps(maps, np.array([[1.0, 2.5], [2.0, 3.0], [3.0, 3.0]], np.float32))
    np.testing.assert_allclose(got[0], maps[1, 2, 3], rtol=1e-5)
    np.testing.assert_allclose(got[1], (maps[2, 3, 3] + maps[3, 3, 3]) / 2, rtol=1e-5)


def test_template_is_a_brain() -> None:
    template = load_template()
    mask = template.maps[..., -1] > 0
    assert 1.7e6 < mask.sum() < 2.1e6  # 1 mm voxels
    assert not mask[0].any()
    assert not mask[:, :, -1].any()


def test_every_contrast_and_tissue_has_values() -> None:
    assert set(BRATS_MODALITIES) < set(SEQUENCES)
    for tissue in TISSUES.values():
        assert min(tissue.t1) > max(tissue.t2) > 0


# --- the dataset ------------------------------------------------------------------------------------------------------


def test_dataset_layout(tmp_path: Path) -> None:
    folders = write_dataset(tmp_path / "phantom", 2, seed=5, progress=False, spacing=8.0)
    assert [f.name for f in folders] == ["phantom-0000", "phantom-0001"]
    for folder in folders:
        names = {f"{folder.name}_{m}.nii.gz" for m in (*BRATS_MODALITIES, "seg")}
        assert {path.name for path in folder.iterdir()} == names
        image = nib.load(folder / f"{folder.name}_t1ce.nii.gz")
        assert image.get_data_dtype() == np.int16
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert b"synthetic phantom" in bytes(image.header["descrip"])


def test_dataset_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", 3, num_workers=1, progress=False, spacing=8.0)
    many = write_dataset(tmp_path / "many", 3, num_workers=3, progress=False, spacing=8.0)
    for a, b in zip(one, many, strict=True):
        for path in a.iterdir():
            assert path.read_bytes() == (b / path.name).read_bytes()


def test_dataset_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folders = write_dataset(tmp_path, 2, progress=False, spacing=8.0)
    kept, lost = folders[0] / "phantom-0000_t1.nii.gz", folders[1] / "phantom-0001_t2.nii.gz"
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    assert write_dataset(tmp_path, 3, progress=False, spacing=8.0)[:2] == folders
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 3


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [("t1", "adc"), (), ("t1", "t1n")])
def test_unknown_modalities(modalities: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected some of t1, t1ce, t2, flair, pd"):
        generate_subject(0, modalities, spacing=SPACING)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subjects": 0}, "subjects: expected at least 1; found 0"),
        ({"subjects": 1, "num_workers": 0}, "num_workers: expected at least 1"),
        ({"subjects": 1, "spacing": 0.1}, "spacing: expected"),
        ({"subjects": 1, "modalities": ("swi",)}, "found 'swi'"),
        ({"subjects": 1, "seed": -1}, "seed: expected"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "out", progress=False, **arguments)
    assert not (tmp_path / "out").exists()


def test_out_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("occupied")
    with pytest.raises(FileExistsError, match="expected a folder"):
        write_dataset(path, 1, progress=False, spacing=8.0)


def test_shape_too_small_for_a_head() -> None:
    with pytest.raises(ValueError, match="shape"):
        generate_subject(0, shape=(10, 10), spacing=SPACING)
