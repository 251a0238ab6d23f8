"""Serve the packaged bundle with MONAI Label, and compare what comes back with the command line's translations.

Runs in the environment that ``environment.py`` builds; ``make test-label`` starts it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from picture import Row, draw
from server import Answer, Client, serving

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONS = {"target", "num_inference_steps", "num_samples"}
TARGETS = ("t1", "t1ce", "t2", "flair")
TARGET, OTHER = "t2", "flair"
SLOWER = {"num_inference_steps": 2, "num_samples": 2}
PHANTOM_SPACING = 3.0  # mm: a translation takes seconds

# The server and the command line run the same float32 operations on as many threads, so the values should be the same
# to the bit; 1e-5 of the range [0, 1] leaves room for sums in another order on other machines and is far below what a
# wrong seed, target, number of steps or preprocessing changes.
VALUE_TOLERANCE = 1e-5
# The server writes the grid by ITK, the command line the source's own header: single precision of coordinates of some
# hundred mm. Far below a voxel.
GRID_TOLERANCE = 1e-3  # mm


class Checks:
    """What has been found, printed as it comes."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def __call__(self, what: str, passed: bool, found: str) -> None:
        print(f"{'ok    ' if passed else 'FAILED'}  {what}: {found}", flush=True)
        if not passed:
            self.failures.append(what)


def main() -> int:
    """Run all checks; 0 if all passed."""
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="label-") as temporary:
        folder = Path(temporary)
        bundle = _unpack(_package(folder, arguments.weights), folder)
        studies = _studies(folder, arguments.scan)
        log = arguments.out / "server.log"
        with serving(bundle, folder / "studies", folder, log) as (client, seconds):
            print(f"        the server is up after {seconds:.1f} s", flush=True)
            rows = _check_server(checks, client, bundle, studies, folder)
        draw(rows, arguments.out / "label.png")
    print(f"picture: {arguments.out / 'label.png'}; the server's log: {log}")
    print(f"{len(checks.failures)} checks failed" if checks.failures else "all checks passed")
    return 1 if checks.failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make test-label", description=__doc__)
    parser.add_argument("--weights", type=Path, help="pack these instead of the bundle's model.pt")
    parser.add_argument("--scan", type=Path, help="also translate this NIfTI file, a skull-stripped scan")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "output" / "label", help="folder for picture and log")
    arguments = parser.parse_args()
    for name in ("weights", "scan"):
        path = getattr(arguments, name)
        if path is not None and not path.is_file():
            parser.error(f"--{name}: expected a file; found none at {path}. Correct the path.")
        setattr(arguments, name, path and path.resolve())
    return arguments


def _run(*command: Any, cwd: Path) -> None:
    """Run Python with these arguments; where it fails, say what it printed."""
    result = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stdout[-2000:]}{result.stderr[-4000:]}")


def _package(folder: Path, weights: Path | None) -> Path:
    chosen = ["--weights", weights] if weights else []
    _run("-m", "custom", "package", "--out", folder / "dist", *chosen, cwd=REPOSITORY)
    return next((folder / "dist").glob("*.zip"))


def _unpack(artifact: Path, folder: Path) -> Path:
    with zipfile.ZipFile(artifact) as archive:
        archive.extractall(folder)
        return folder / archive.namelist()[0].partition("/")[0]


def _studies(folder: Path, scan: Path | None) -> dict[str, Path]:
    """Name of a study → its file: a T1 of a phantom and the scan, if there is one."""
    made = folder / "phantoms"
    _run(
        "-m", "custom", "phantom", "--out", made, "--subjects", 1, "--spacing", PHANTOM_SPACING,
        "--modalities", "['t1']", cwd=REPOSITORY,
    )  # fmt: skip
    sources = {"phantom": next(made.rglob("*_t1.nii.gz"))} | ({"scan": scan} if scan else {})
    studies = folder / "studies"
    studies.mkdir()
    for name, source in sources.items():
        suffix = ".nii.gz" if source.name.endswith(".nii.gz") else source.suffix
        sources[name] = studies / f"{name}{suffix}"
        sources[name].write_bytes(source.read_bytes())
    return sources


def _check_server(checks: Checks, client: Client, bundle: Path, studies: dict[str, Path], folder: Path) -> list[Row]:
    config = client.info()["config"]
    checks("/info shows the options", config.keys() >= OPTIONS, f"{ {k: config.get(k) for k in sorted(OPTIONS)} }")
    rows = []
    for name, source in studies.items():
        rows.append(_check_study(checks, client, bundle, name, source, folder))
    phantom = studies["phantom"]
    options = {"target": OTHER, **SLOWER}
    served = _volume(client.infer("phantom", **options), folder / "slower.nii.gz")
    expected = _command_line(bundle, phantom, folder / "slower", [OTHER], **SLOWER)[OTHER]
    _compare(checks, f"phantom, {options}", served, expected)
    difference = _difference(served, rows[0].other)
    checks("steps and samples change the volume", difference > VALUE_TOLERANCE, f"by at most {difference:.3g}")
    uploaded = _volume(client.infer(file=phantom, target=TARGET), folder / "uploaded.nii.gz")
    _compare(checks, "phantom, uploaded with the request", uploaded, rows[0].expected)
    _check_refusals(checks, client)
    again = _volume(client.infer("phantom", target=TARGET), folder / "again.nii.gz")
    _compare(checks, "phantom, after the refusals", again, rows[0].expected)
    return rows


def _check_study(checks: Checks, client: Client, bundle: Path, name: str, source: Path, folder: Path) -> Row:
    """Translate one study by the server, twice, and by the command line."""
    answers = [client.infer(name, target=TARGET) for _ in range(2)]
    served, repeated = (_volume(a, folder / f"{name}_{i}.nii.gz") for i, a in enumerate(answers))
    other = _volume(client.infer(name, target=OTHER), folder / f"{name}_other.nii.gz")
    expected = _command_line(bundle, source, folder / f"{name}_command_line", [TARGET, OTHER])
    image = nib.load(source)
    times = ", ".join(f"{kind} {a.seconds:.1f} s" for kind, a in zip(("first", "second"), answers, strict=True))
    print(f"        {name}, {'×'.join(map(str, image.shape))} voxels, request to answer: {times}", flush=True)
    _compare(checks, f"{name} to {TARGET}", served, expected[TARGET])
    _compare(checks, f"{name} to {OTHER}", other, expected[OTHER])
    _check_grid(checks, f"{name} to {TARGET}, the source's grid", served, image)
    checks(f"{name}, twice the same", _difference(served, repeated) == 0, f"differ by {_difference(served, repeated)}")
    difference = _difference(served, other)
    checks(f"{name}, the target matters", difference > 100 * VALUE_TOLERANCE, f"at most {difference:.3g} apart")
    return Row(name, image, served, expected[TARGET], other, TARGET, OTHER)


def _check_refusals(checks: Checks, client: Client) -> None:
    """A fault of a request is answered with what is wrong with it."""
    unknown = client.infer("phantom", target="pet")
    found = f"{unknown.status} {unknown.text}"
    named = all(target in unknown.text for target in TARGETS) and "pet" in unknown.text
    checks("an unknown target is refused, and the targets are named", unknown.status == 400 and named, found)
    for option, value in (("num_samples", 0), ("num_inference_steps", "many")):
        answer = client.infer("phantom", **{option: value})
        said = option in answer.text and str(value) in answer.text
        checks(f"{option} {value} is refused", answer.status == 400 and said, f"{answer.status} {answer.text}")


def _volume(answer: Answer, path: Path) -> nib.Nifti1Image:
    """The volume in an answer.

    Raises:
        RuntimeError: if the server answered with an error.
    """
    if answer.status != 200:
        raise RuntimeError(f"the server answered {answer.status}: {answer.text[:2000]}")
    # sent compressed or not, whatever the file is called
    path = path if answer.content[:2] == b"\x1f\x8b" else path.with_suffix("")
    path.write_bytes(answer.content)
    return nib.load(path)


def _command_line(bundle: Path, source: Path, out: Path, targets: list[str], **options: Any) -> dict[str, Any]:
    """Target → translation by ``python -m monai.bundle run inference`` with the same bundle."""
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    _run(
        "-m", "monai.bundle", "run", "inference", "--config_file", bundle / "configs" / "inference.json",
        "--bundle_root", bundle, "--image", source, "--targets", str(targets), "--output_dir", out,
        "--device", "$torch.device('cpu')", *flags, cwd=bundle.parent,
    )  # fmt: skip
    return {target: nib.load(next(out.glob(f"*_{target}_synthetic.nii.gz"))) for target in targets}


def _compare(checks: Checks, what: str, served: nib.Nifti1Image, expected: nib.Nifti1Image) -> None:
    """The same float32 values on the same grid."""
    kind, values = served.get_data_dtype(), served.get_fdata(dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    checks(
        f"{what}, float32 in [0, 1]", kind == np.float32 and 0 <= low < high <= 1, f"{kind}, {low:.3g} to {high:.3g}"
    )
    _check_grid(checks, f"{what}, the command line's grid", served, expected)
    if served.shape == expected.shape:
        difference = _difference(served, expected)
        checks(f"{what}, the command line's values", difference <= VALUE_TOLERANCE, f"at most {difference:.3g} apart")


def _check_grid(checks: Checks, what: str, served: nib.Nifti1Image, expected: nib.Nifti1Image) -> None:
    """Shape, and the place of the volume's corners in mm."""
    same = served.shape == expected.shape
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in expected.shape)), -1).reshape(-1, 3)
    moved = np.abs(nib.affines.apply_affine(served.affine - expected.affine, corners)).max()
    checks(what, same and moved <= GRID_TOLERANCE, f"shape {served.shape}, corners moved by {moved:.2g} mm")


def _difference(first: nib.Nifti1Image, second: nib.Nifti1Image) -> float:
    """Largest absolute difference of two volumes on one grid."""
    return float(np.abs(first.get_fdata(dtype=np.float32) - second.get_fdata(dtype=np.float32)).max())


if __name__ == "__main__":
    sys.exit(main())
