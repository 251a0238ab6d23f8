"""Hypothesis on what others write: headers of NIfTI, data lists, split files. Read rightly, or one error."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from custom.data.datalist import read_datalist
from custom.data.readers import read_volume
from custom.data.splits import SECTIONS, read_split_file

DATA = np.random.default_rng(0).integers(0, 900, (8, 7, 5)).astype("<i2")
FIELDS = {"dim": (40, 16), "datatype": (70, 4), "pixdim": (76, 32), "vox_offset": (108, 4), "scale": (112, 8),
          "codes": (252, 4), "quaternion": (256, 24), "srow": (280, 48), "magic": (344, 4)}  # fmt: skip

quick = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# what a person may call a subject; spaces around it are not part of it
names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12).filter(
    lambda text: text == text.strip() and text.strip("\t;, ") and not text.lower().startswith(("sep=", "{"))
)


def one_line(error: ValueError | OSError, path: Path) -> None:
    assert str(error).startswith(str(path)), error
    assert "\n" not in str(error)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("scan") / "scan.nii"
    nib.save(nib.Nifti1Image(DATA, np.diag([1.0, 2.0, 1.5, 1.0])), path)
    return path.read_bytes()


@quick
@given(field=st.sampled_from(list(FIELDS)), content=st.binary(min_size=48, max_size=48), compressed=st.booleans())
def test_headers_of_nifti(scan: bytes, tmp_path: Path, field: str, content: bytes, compressed: bool) -> None:
    """Whatever a header says, the result has voxels of this file on a grid, or there is one error."""
    start, length = FIELDS[field]
    changed = scan[:start] + content[:length] + scan[start + length :]
    path = tmp_path / ("scan.nii.gz" if compressed else "scan.nii")
    path.write_bytes(gzip.compress(changed, 1) if compressed else changed)
    try:
        with np.errstate(all="ignore"):
            volume = read_volume(path)
    except ValueError as error:
        one_line(error, path)
        return
    assert np.isfinite(volume.affine.numpy()).all()
    if field in ("pixdim", "codes", "quaternion", "srow"):  # of the grid alone
        np.testing.assert_array_equal(volume[0].numpy(), DATA)


@quick
@given(
    sections=st.dictionaries(names, st.sampled_from(SECTIONS), min_size=1, max_size=6),
    divider=st.sampled_from(",;\t"),
    heading=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_split_files_are_read_as_they_were_written(
    tmp_path: Path, sections: dict[str, str], divider: str, heading: bool, encoding: str, ending: str
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=divider, lineterminator=ending)
    writer.writerows([("subject", "section")] if heading else [])
    writer.writerows(sections.items())
    path = tmp_path / "split.csv"
    path.write_bytes(text.getvalue().encode(encoding))
    assert read_split_file(path) == {subject: [section] for subject, section in sections.items()}
    path.write_text(json.dumps({s: [n for n in sections if sections[n] == s] for s in SECTIONS}), encoding=encoding)
    assert read_split_file(path) == {subject: [section] for subject, section in sections.items()}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
entry = st.fixed_dictionaries({}, optional={"subject": values, "t1": values, "t2": values, "seg": values})
lists = st.fixed_dictionaries(
    {}, optional={"modalities": st.just(["t1", "t2"]) | values, "training": st.lists(entry, max_size=2) | values}
)


@pytest.mark.slow
@quick
@given(content=lists | values | st.binary(max_size=40))
def test_whatever_is_in_a_data_list(tmp_path: Path, content: object) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    for read in (read_datalist, read_split_file):
        try:
            found = read(path)
        except (ValueError, OSError) as error:
            one_line(error, path)
        else:
            assert isinstance(found, dict)
