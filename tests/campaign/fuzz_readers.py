"""Fuzzing of every reader: valid small files are changed at random, and what becomes of each is counted.

``python tests/campaign/fuzz_readers.py --minutes 20``. Each file is read in a process of
its own kind that is replaced when it dies, hangs or has taken too much memory. The exit status is 1 if a reader did
what none may do: an error that is not one of this project's, wrong voxels where a checksum tells, a hang, a crash.

What cannot be known: a file without a checksum (NIfTI, MetaImage and NRRD without compression, Analyze, DICOM, text)
whose content changed within its size is another valid file. Such files are counted as ``unknowable``.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE = (9, 8, 6)
HANG_SECONDS = 20  # of the processor's time, so that a busy machine does not count
LONGEST_WAIT = 900  # for whatever waits without computing
MOST_MIB = 512  # that a reader may take beyond what it has after its valid file
BAD = ("wrong", "other error", "hang", "crash", "memory")
COLUMNS = ("equal", "refused", "unknowable", *BAD)

Maker = Callable[[Path], Path]


def run(minutes: float = 20, seed: int = 0) -> dict[str, Any]:
    """Fuzz all readers, by turns, for so many minutes.

    Returns:
        ``{"seed", "minutes", "files", "peak_mib", "bad", "readers": {name: {outcome: count}}, "examples": {...}}``;
        ``bad`` counts what must not happen, ``examples`` hold one file's story for each kind of that.
    """
    counts: dict[str, Counter] = {name: Counter() for name in MAKERS}
    examples: dict[str, str] = {}
    choose, peak = random.Random(seed), 0.0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        files = {name: make(Path(folder) / f"valid-{name.replace(' ', '-')}") for name, make in MAKERS.items()}
        worker = Worker()
        truths = {name: worker.read(name, path) for name, path in files.items()}
        for name, truth in truths.items():
            assert truth["outcome"] == "read", f"the valid file of {name} is not read: {truth}"
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            for name, path in files.items():
                changed = Path(folder) / "changed"
                story, has_checksum = damage(path, changed, choose, name)
                found = worker.read(name, changed / path.name)
                outcome = found["outcome"]
                if outcome == "read":
                    same = found["digest"] == truths[name]["digest"]
                    outcome = "equal" if same else "wrong" if has_checksum else "unknowable"
                peak = max(peak, found.get("mib", 0.0))
                if outcome != "hang" and found.get("mib", 0.0) > MOST_MIB:
                    outcome = "memory"
                counts[name][outcome] += 1
                if outcome in BAD:
                    examples.setdefault(f"{name}, {outcome}", f"{story}: {found.get('error', '')}"[:400])
                if outcome == "memory":
                    worker.stop()  # the high-water mark of a process never falls
        worker.stop()
    total = sum((Counter(c) for c in counts.values()), Counter())
    return {
        "seed": seed,
        "minutes": minutes,
        "files": sum(total.values()),
        "peak_mib": round(peak, 1),
        "bad": sum(total[kind] for kind in BAD),
        "readers": {name: {c: count[c] for c in COLUMNS} for name, count in counts.items()},
        "examples": examples,
    }


def damage(source: Path, folder: Path, choose: random.Random, name: str) -> tuple[str, bool]:
    """A changed copy of ``source`` in ``folder``; what was done, and whether a checksum covers it."""
    _clear(folder)
    members = sorted(source.iterdir()) if source.is_dir() else sorted(source.parent.iterdir())
    place = folder / source.name if source.is_dir() else folder
    place.mkdir(exist_ok=True)
    victim = choose.choice(members)
    story, covered = "", False
    for member in members:
        content = member.read_bytes()
        if member == victim:
            is_gzip = content[:2] == b"\x1f\x8b"
            inside = is_gzip and choose.random() < 0.5
            changed, story = change(gzip.decompress(content) if inside else content, choose)
            covered = not inside and (name in CHECKED or member.suffix in CHECKED_PARTS)
            content = gzip.compress(changed, 1) if inside else changed
            story = f"{member.name}{' (inside)' if inside else ''}, {story}"
        (place / member.name).write_bytes(content)
    return story, covered


def change(content: bytes, choose: random.Random) -> tuple[bytes, str]:
    """One to four changes; the start of a file, where its header lies, is as likely as all the rest."""
    changed, done = bytearray(content), []
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        size = len(changed)
        place = choose.randrange(min(size, 400) or 1) if choose.random() < 0.5 else choose.randrange(size or 1)
        kind = choose.choice(("bit", "bit", "byte", "extreme", "digit", "cut", "zeros", "insert", "double", "append"))
        length = choose.choice((1, 2, 4, 8, 100))
        if kind == "bit" and size:
            changed[place] ^= 1 << choose.randrange(8)
        elif kind == "byte" and size:
            changed[place] = choose.randrange(256)
        elif kind == "extreme":
            changed[place : place + length] = choose.choice((b"\xff", b"\x7f", b"\x80")) * length
        elif kind == "digit":  # of a number in a text
            changed[place : place + 1] = choose.choice((b"0", b"9", b"-", b".", b"e", b"999999999", b"\n", b'"', b"["))
        elif kind == "cut":
            del changed[place if choose.random() < 0.5 else max(size - length, 0) :]
        elif kind == "zeros":
            changed[place : place + length] = bytes(length)
        elif kind == "insert":
            changed[place:place] = choose.randbytes(length)
        elif kind == "double":
            changed[place:place] = changed[place : place + length]
        elif kind == "append":
            changed += choose.randbytes(length)
        done.append(f"{kind} at {place} of {size}")
    return bytes(changed), "; ".join(done)


def _clear(folder: Path) -> None:
    if folder.is_dir():
        for child in folder.iterdir():
            if child.is_dir():
                _clear(child)
                child.rmdir()
            else:
                child.unlink()
    else:
        folder.mkdir()


class Worker:
    """A process that reads what it is told to, and is started anew when it has died or hung."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, reader: str, path: Path) -> dict[str, Any]:
        """``outcome``: read, refused, other error, hang or crash; with ``digest``, ``error`` and ``mib`` taken."""
        process = self._process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        print(json.dumps([reader, str(path)]), file=process.stdin, flush=True)
        ready, _, _ = select.select([process.stdout], [], [], LONGEST_WAIT)
        answer = process.stdout.readline() if ready else ""
        if answer:
            return json.loads(answer)
        self.stop()
        hung = not ready or process.returncode == -signal.SIGPROF
        return {"outcome": "hang" if hung else "crash", "error": f"exit status {process.returncode}"}

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process and self._process.stdin and self._process.stdout:
            self._process.stdin.close()  # it ends by itself, if it can
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
        self._process = None

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--serve"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout
        process.stdout.readline()  # it has imported what it needs
        return process


def serve() -> None:
    """The worker's side: one line of JSON for each that is asked."""
    import logging
    import os
    import warnings

    import itk
    import torch

    from custom.utils.errors import find_user_error

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # C libraries print what they think of a file
    logging.disable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    itk.ImageFileReader  # noqa: B018 - loads ITK's parts
    readers = make_readers()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        name, path = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)  # ends the process, whatever it is in
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            found = {"outcome": "read", "digest": hashlib.sha256(readers[name](path)).hexdigest()}
        except BaseException as error:
            known = find_user_error(error)
            plain = known is error and "\n" not in str(error)
            found = {"outcome": "refused" if plain else "other error", "error": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps({**found, "mib": taken}), file=answers, flush=True)


def make_readers() -> dict[str, Callable[[str], bytes]]:
    """Reader → what it reads, as bytes."""
    from custom.data.datalist import read_datalist
    from custom.data.readers import read_volume
    from custom.data.splits import read_split_file
    from custom.networks.layouts.reader import read_checkpoint
    from custom.networks.weights import read_weights

    def voxels(path: str) -> bytes:
        return read_volume(path).as_tensor().numpy().tobytes()

    def tensors(path: str) -> bytes:
        return b"".join(k.encode() + v.numpy().tobytes() for k, v in read_weights(path).items())

    def elsewhere(path: str) -> bytes:
        content = read_checkpoint(path)
        return b"".join(str(k).encode() + v.numpy().tobytes() for k, v in content["state_dict"].items())

    others = {
        "data list": lambda path: json.dumps(read_datalist(path)).encode(),
        "split file, JSON": lambda path: json.dumps(read_split_file(path)).encode(),
        "split file, CSV": lambda path: json.dumps(read_split_file(path)).encode(),
        "weights": tensors,
        "checkpoint from elsewhere": elsewhere,
    }
    return {name: others.get(name, voxels) for name in MAKERS}


def _data() -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)


def _nifti(suffix: str, kind: str = "Nifti1Image") -> Maker:
    def make(folder: Path) -> Path:
        import nibabel as nib
        import numpy as np

        folder.mkdir()
        image = getattr(nib, kind)(_data(), np.diag([1.0, 2.0, 1.5, 1.0]))
        nib.save(image, folder / f"scan{suffix}")
        (folder / "scan.mat").unlink(missing_ok=True)
        return folder / f"scan{suffix}"

    return make


def _itk(suffix: str, *, compression: bool = False) -> Maker:
    def make(folder: Path) -> Path:
        import itk
        import numpy as np

        folder.mkdir()
        image = itk.image_from_array(np.ascontiguousarray(_data().T))
        itk.imwrite(image, str(folder / f"scan{suffix}"), compression=compression)
        return folder / f"scan{suffix}"

    return make


def _dicom(*, frames: bool) -> Maker:
    def make(folder: Path) -> Path:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

        from custom.inference.dicom_writer import write_dicom

        folder.mkdir()
        (folder / "series").mkdir()
        data, uid = _data(), generate_uid()

        def base() -> Dataset:
            header = Dataset()
            header.SOPClassUID = EnhancedMRImageStorage if frames else MRImageStorage
            header.SOPInstanceUID, header.SeriesInstanceUID, header.Modality = generate_uid(), uid, "MR"
            header.Columns, header.Rows, header.SamplesPerPixel = *SHAPE[:2], 1
            header.PhotometricInterpretation = "MONOCHROME2"
            header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
            header.file_meta = FileMetaDataset()
            header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            return header

        def item(**values: Any) -> Dataset:
            found = Dataset()
            for key, value in values.items():
                setattr(found, key, value)
            return found

        def pixels(k: int) -> bytes:
            return data[..., k].T.astype("<u2").tobytes()

        axes, spacing = [1, 0, 0, 0, 1, 0], [1, 1]
        if not frames:
            for k in range(SHAPE[2]):
                header = base()
                header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, 2 * k], axes
                header.PixelSpacing, header.PixelData = spacing, pixels(k)
                write_dicom(folder / "series" / f"{k}.dcm", header)
            return folder / "series"
        header = base()
        header.NumberOfFrames, header.PixelData = SHAPE[2], b"".join(pixels(k) for k in range(SHAPE[2]))
        header.PerFrameFunctionalGroupsSequence = [
            item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 2 * k])]) for k in range(SHAPE[2])
        ]
        plane, measures = item(ImageOrientationPatient=axes), item(PixelSpacing=spacing)
        header.SharedFunctionalGroupsSequence = [
            item(PlaneOrientationSequence=[plane], PixelMeasuresSequence=[measures])
        ]
        write_dicom(folder / "series" / "scan.dcm", header)
        return folder / "series" / "scan.dcm"

    return make


def _compressed_dicom(folder: Path) -> Path:
    import pydicom
    from pydicom.uid import RLELossless

    from custom.inference.dicom_writer import write_dicom

    path = _dicom(frames=True)(folder)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    write_dicom(path, dataset)
    return path


def _text(name: str, content: str) -> Maker:
    def make(folder: Path) -> Path:
        folder.mkdir()
        (folder / name).write_text(content)
        return folder / name

    return make


def _checkpoint(*, wrapped: bool) -> Maker:
    def make(folder: Path) -> Path:
        import torch

        folder.mkdir()
        state = {f"layer.{i}.weight": torch.arange(60.0).reshape(3, 20) for i in range(4)}
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, folder / "model.pt")
        return folder / "model.pt"

    return make


SECTIONS = {"training": ["a", "b"], "validation": ["c"], "test": ["d", "e"]}
LIST = {"modalities": ["t1", "t2"], "training": [{"subject": "a", "t1": "/dev/null", "t2": "/dev/null"}]}
MAKERS: dict[str, Maker] = {
    "NIfTI": _nifti(".nii"),
    "NIfTI, gzip": _nifti(".nii.gz"),
    "NIfTI-2, gzip": _nifti(".nii.gz", "Nifti2Image"),
    "NIfTI pair": _nifti(".hdr", "Nifti1Pair"),
    "Analyze": _nifti(".hdr", "AnalyzeImage"),
    "MetaImage": _itk(".mha"),
    "MetaImage, compressed": _itk(".mhd", compression=True),
    "NRRD": _itk(".nrrd"),
    "NRRD, compressed": _itk(".nhdr", compression=True),
    "DICOM series": _dicom(frames=False),
    "DICOM, multi-frame": _dicom(frames=True),
    "DICOM, compressed": _compressed_dicom,
    "data list": _text("list.json", json.dumps(LIST)),
    "split file, JSON": _text("split.json", json.dumps(SECTIONS)),
    "split file, CSV": _text("split.csv", "".join(f"{i};{s}\n" for s, ids in SECTIONS.items() for i in ids)),
    "weights": _checkpoint(wrapped=False),
    "checkpoint from elsewhere": _checkpoint(wrapped=True),
}
# whose voxels or tensors a checksum covers, whatever byte is changed; and files that hold the voxels of a header's file
CHECKED = ("NIfTI, gzip", "NIfTI-2, gzip", "weights", "checkpoint from elsewhere")
CHECKED_PARTS = (".zraw", ".gz")


def table(found: dict[str, Any]) -> str:
    """The counts as a table in Markdown."""
    lines = [f"| reader | files | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * (len(COLUMNS) + 1)}"]
    for name, counts in found["readers"].items():
        lines.append(f"| {name} | {sum(counts.values())} | {' | '.join(str(counts[c]) for c in COLUMNS)} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table; 0 if nothing happened that must not."""
    parser = argparse.ArgumentParser(prog="python tests/campaign/fuzz_readers.py", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return 0
    found = run(arguments.minutes, arguments.seed)
    print(table(found))
    print(json.dumps({k: v for k, v in found.items() if k != "readers"}, indent=1))
    return 1 if found["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
