"""MONAI Label: its real server answers requests over HTTP, good and bad ones, and every answer is looked at.

The server works in a folder that holds a DICOM series, which it must not take for a scan that nobody asked for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
from environments import Environment, bundle_requirements, ensure_environment
from harness import Check, Context, expect
from label_server import Answer, Client, serving
from scans import make_bad_scans, make_second_contrast
from volumes import check_grid, check_translation, difference

from custom.data.readers import read_volume

__all__ = ["run"]

HERE = Path(__file__).resolve().parent
# The server and the command line run the same float32 operations on as many threads: seen, the same to the bit. This
# leaves room for sums in another order on other machines, far below what a wrong seed or target changes.
SAME = 1e-5
SECOND = "las_flair.nii.gz"  # another contrast of "las"
OPTIONS = {"target": "t2", "num_inference_steps": 0, "num_samples": 1}
SLOWER = {"num_inference_steps": 2, "num_samples": 2}
# what is wrong with a scan, see make_bad_scans: words of the answer
BAD_SCANS = {
    "4d": "expected one 3D volume with one channel; found 2 volumes",
    "tiny": "expected at least 16×16×16 voxels",
    "mask": "expected a scan; found a segmentation or mask by its name",
    "binary": "expected an MRI contrast; found only the values 0 and 1",
    "nan": "expected finite intensities in the brain; found",
    "truncated": "expected a readable 3D image",
    "text": "expected a readable 3D image",
}
BAD_OPTIONS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"target": "pet"}, "expected one or more of t1, t1ce, t2, flair; found 'pet'"),
    ({"target": ["t2", "flair"]}, "target: expected one modality; found ['t2', 'flair']"),
    ({"num_samples": 1.5}, "num_samples: expected a whole number from 1 to 1000; found 1.5"),
    ({"num_samples": True}, "num_samples: expected a whole number from 1 to 1000; found True"),
    ({"num_samples": 1e9}, "num_samples: expected a whole number from 1 to 1000; found 1000000000.0"),
    ({"num_inference_steps": "many"}, "num_inference_steps: expected a whole number from 0 to 1000; found 'many'"),
)


def _listed(name: str) -> tuple[str, ...]:
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


LABEL = Environment(
    "label",
    (*bundle_requirements(), *_listed("label_requirements.txt")),
    _listed("label_requirements_no_deps.txt"),
    # the registry's torchvision is a CUDA build, which registers kernels for operators that it cannot load beside a CPU
    # build of torch; MONAI Label imports it but uses none of them
    emptied=("torchvision/_meta_registrations.py",),
    imports=("torchvision", "monailabel.app"),
)


class Served(NamedTuple):
    """What the checks of a server share."""

    context: Context
    client: Client
    bundle: Path
    room: Path
    second: Path

    def volume(self, answer: Answer) -> nib.Nifti1Image:
        """The volume in an answer; its file says that it is synthetic."""
        expect(answer.status == 200, f"{answer.status}: {answer.text[:500]}")
        expect("_synthetic.nii" in answer.name, f"the name of the answer is {answer.name!r}")
        # sent compressed or not, whatever the file is called
        path = self.room / (answer.name if answer.content[:2] == b"\x1f\x8b" else answer.name.removesuffix(".gz"))
        path.write_bytes(answer.content)
        return nib.load(path)

    def command_line(self, *sources: Path, target: str, **options: Any) -> nib.Nifti1Image:
        """The translation of ``python -m monai.bundle run inference`` with the same bundle."""
        out = self.room / "_".join(map(str, (*(source.name for source in sources), target, *options.values())))
        if not out.exists():
            self.context.bundle_command(
                "run", "inference", config_file=self.bundle / "configs/inference.json", output_dir=out,
                image=sources[0] if len(sources) == 1 else [*map(str, sources)], targets=[target],
                device="$torch.device('cpu')", **options,
            )  # fmt: skip
        return nib.load(next(out.glob("*_synthetic.nii.gz")))


def run(context: Context) -> Iterator[Check]:
    """Start the server, ask for translations, and for what cannot be."""
    room = context.room("label")
    app, studies, inside = room / "monaibundle", room / "studies", room / "cwd"
    python = ensure_environment(LABEL)
    context.python(
        "-m", "monailabel.main", "apps", "--download", "--name", "monaibundle", "--output", room, environment=LABEL
    )
    (app / "model").mkdir(exist_ok=True)
    bundle = context.unpack(app / "model")
    studies.mkdir()
    for name in ("las", "lps"):
        shutil.copy(getattr(context.scans, name), studies)
    make_bad_scans(context.scans.las, studies)
    second = make_second_contrast(context.scans.las, studies / SECOND)
    shutil.copytree(context.scans.dicom, inside)
    with serving(python, app, bundle, studies, inside) as client:
        served = Served(context, client, bundle, room, second)
        yield from _good(served)
        yield from _bad(served)
    rival = context.unpack(app / "model", context.rival)
    with serving(python, app, rival, studies, inside) as client:
        served = Served(context, client, rival, context.room("label_rival"), second)
        check = partial(context.check, "label")
        yield check("a rival's bundle", lambda: _equal(served, context.scans.las, "t2", "las"))
        other = "expected t2, the only one that these weights were trained for"
        yield check("a rival's other target", lambda: _refused(served.client.infer("las", target="flair"), other))
        names, several = SECOND.removesuffix(".nii.gz"), "expected one source"
        yield check(
            "a rival's second source",
            lambda: _refused(served.client.infer("las", target="t2", sources=names), several),
        )


def _good(served: Served) -> Iterator[Check]:
    check = partial(served.context.check, "label")
    scans = served.context.scans
    yield check("/info shows the options", lambda: _info(served.client))
    for name, target in (("las", "t2"), ("lps", "flair")):
        yield check(
            f"{name} to {target} as the command line's",
            lambda name=name, target=target: _equal(served, getattr(scans, name), target, name),
        )
    yield check("steps and samples", lambda: _options(served))
    yield check("two sources, as the command line's", lambda: _two_sources(served))
    yield check("an uploaded scan", lambda: _equal(served, scans.las, "t2", file=scans.las))
    yield check("a DICOM series", lambda: _equal(served, scans.dicom, "t2", str(scans.dicom)))
    yield check("parameters say that it is synthetic", lambda: _parameters(served.client))


def _bad(served: Served) -> Iterator[Check]:
    check = partial(served.context.check, "label")
    for name, words in BAD_SCANS.items():
        yield check(
            f"bad scan: {name}", lambda name=name, words=words: _refused(served.client.infer(name, target="t2"), words)
        )
    yield check(
        "unknown image id",
        lambda: _refused(served.client.infer("nobody"), "image: expected a scan; found no file", 404),
    )
    for options, words in BAD_OPTIONS:
        yield check(
            f"bad option: {json.dumps(options)}",
            lambda options=options, words=words: _refused(served.client.infer("las", **options), words),
        )
    yield check("after the refusals", lambda: _equal(served, served.context.scans.las, "t2", "las"))


def _info(client: Client) -> str:
    config = client.info()["config"]
    found = {key: config.get(key) for key in OPTIONS}
    expect(found == OPTIONS, f"found {found}")
    return str(found)


def _equal(served: Served, source: Path, target: str, image: str = "", **asked: Any) -> str:
    """The served volume lies on the source's grid and holds the command line's values."""
    answer = served.volume(served.client.infer(image, target=target, **asked))
    said = check_translation(answer)
    original = read_volume(source)
    check_grid(answer, original.affine.numpy(), tuple(original.shape[1:]))
    gap = difference(answer, served.command_line(source, target=target))
    expect(gap <= SAME, f"{gap:.3g} apart from the command line's")
    return f"{said}, at most {gap:.3g} apart"


def _options(served: Served) -> str:
    source = served.context.scans.las
    answer = served.volume(served.client.infer("las", target="t2", **SLOWER))
    gap = difference(answer, served.command_line(source, target="t2", **SLOWER))
    changed = difference(answer, served.command_line(source, target="t2"))
    expect(gap <= SAME, f"{gap:.3g} apart from the command line's")
    expect(changed > 100 * SAME, f"they change the volume by {changed:.3g} only")
    return f"at most {gap:.3g} apart; they change the volume by {changed:.3g}"


def _two_sources(served: Served) -> str:
    source = served.context.scans.las
    answer = served.volume(served.client.infer("las", target="t2", sources=SECOND.removesuffix(".nii.gz")))
    check_translation(answer)
    gap = difference(answer, served.command_line(source, served.second, target="t2"))
    changed = difference(answer, served.command_line(source, target="t2"))
    expect(gap <= SAME, f"{gap:.3g} apart from the command line's")
    expect(changed > 100 * SAME, f"the second source changes the volume by {changed:.3g} only")
    return f"at most {gap:.3g} apart; the second source changes the volume by {changed:.3g}"


def _parameters(client: Client) -> str:
    answer = client.infer("las", target="t2", output="json")
    expect(answer.status == 200, f"{answer.status}: {answer.text[:500]}")
    said = json.loads(answer.text)
    expect(said.get("synthetic") is True and said.get("description", "").startswith("SYNTHETIC t2"), answer.text[:500])
    record = said["provenance"]
    wanted = {"Target": "t2", "Seed": 0, "Samples": 1, "Steps": 1}
    expect({key: record.get(key) for key in wanted} == wanted, f"found {record}")
    hashes = [len(record.get(key) or "") for key in ("WeightsSHA", "SourceSHA")]
    expect(hashes == [64, 64], f"found hashes of {hashes} characters in {record}")
    return said["description"]


def _refused(answer: Answer, words: str, status: int = 400) -> str:
    expect(answer.status == status and words in answer.text, f"{answer.status}: {answer.text[:500]}")
    return f"{answer.status} {json.loads(answer.text)['detail']}"
