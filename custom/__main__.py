"""Command line: ``python -m custom COMMAND``. What MONAI's own ``python -m monai.bundle`` does is not repeated here."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import fire

from custom.utils.arguments import check_path, nearest
from custom.utils.errors import report_plainly
from custom.utils.files import require_writable


def phantom(out: str, subjects: int = 48, seed: int = 0, spacing: float = 1.0, modalities: Any = None) -> None:
    """Make a data set of synthetic brains in the BraTS 2021 layout.

    Args:
        out: folder to write to; subjects that are complete there are kept.
        subjects: how many.
        seed: the same seed and number give the same brains.
        spacing: edge length of a voxel in mm.
        modalities: list of contrasts, by default t1, t1ce, t2, flair.
    """
    from custom.data.phantom.dataset import write_dataset
    from custom.utils.modalities import BRATS_MODALITIES

    folders = write_dataset(out, subjects, seed, modalities or BRATS_MODALITIES, spacing=spacing)
    print(f"{len(folders)} subjects in {out}")


def ablation(output_dir: str = "output/ablation", **settings: Any) -> None:
    """Train and evaluate the ablations of the paper's Table 3 on phantoms, and write the table.

    Args:
        output_dir: where everything goes; what is complete there is not done again.
        settings: ``--variants ours,kl``, ``--share 0.6`` of the epochs, ``--subjects 24,2,6``, ``--spacing 2.0``
            mm, ``--dataset_dir DIR`` in place of phantoms, ``--seed 0``, ``--amp true``, values of the configs.
    """
    from custom.commands.ablation import ablation as run

    run(output_dir, **settings)


def table1(output_dir: str = "output/table1", **settings: Any) -> None:
    """Train the paper's eight rivals and this model with the same arithmetic, score them, and write Table 1.

    Args:
        output_dir: where everything goes; what is complete there is not done again.
        settings: ``--methods ours,reg_gan``, ``--tasks "[['t1','t2']]"``, ``--budget 100`` TFLOP for each training,
            ``--size small``, ``--all_tasks true``, ``--subjects 24,2,6``, ``--spacing 2.0`` mm, ``--dataset_dir DIR``
            in place of phantoms, ``--seed 0``, ``--amp true``, values of the configs.
    """
    from custom.commands.table1 import table1 as run

    run(output_dir, **settings)


def demo(image: str | None = None, output_dir: str = "output/demo", **overrides: Any) -> None:
    """Translate a held-out phantom, and ``image`` if given, with the shipped weights; print scores, draw pictures.

    Args:
        image: a file, or a folder of subjects in the BraTS 2021 layout.
        output_dir: where the results go.
        overrides: values of the bundle's configs, such as ``--amp true``.
    """
    from custom.commands.demo import demo as run

    run(image, output_dir, **overrides)


def steps(output_dir: str = "output/steps", **settings: Any) -> None:
    """Measure quality against sampler steps on validation subjects; write steps.csv, a table and steps.png.

    Args:
        output_dir: where the results go.
        settings: ``--subjects 4``, ``--models_dir DIR`` of an ablation and ``--models ours,epsilon`` of it,
            ``--curves "{'DDIM': [1, 2]}"``, ``--seed 0``, ``--amp true``, values of evaluate.json.
    """
    from custom.commands.steps import steps as run

    run(output_dir, **settings)


def summary(*sizes: int, preset: str = "small", size: Any = (192, 192, 144)) -> None:
    """Print parameters by part, latent shape and FLOPs of each step of a translation.

    Args:
        preset: ``small``, ``paper`` or ``release``.
        size: voxels of the volume, ``--size 192 192 144``.
    """
    from custom.commands.summary import summary as run

    # fire gives a flag one value; the rest of "--size 192 192 144" arrives as positional arguments
    run(preset=preset, size=(size, *sizes) if isinstance(size, int) else tuple(size))


def package(out: str = "dist", weights: str | None = None) -> None:
    """Write the Model Zoo artifact, a zip that works without this repository.

    Args:
        out: folder for it.
        weights: pack these instead of the bundle's model.pt, after checking that they fit.
    """
    from custom.commands.package import package as run

    print(run(out, weights))


def export_weights(part: str, out: str, weights: str | None = None, config: Any = ()) -> None:
    """Turn a part of a trained model into weights of MONAI core's class, with a config that defines it.

    Args:
        part: ``autoencoder`` (AutoencoderKL) or ``unet`` (DiffusionModelUNet).
        out: file of weights to write; the config goes beside it.
        weights: of this project; by default the config's ``ckpt_path``.
        config: files that define the network, ``"['inference.json','preset_paper.json']"``; by default the bundle's.
    """
    from custom.commands.export_weights import export_weights as run

    for label, path in zip(
        ("Weights", "Config", "Codebook"), run(part, out, weights=weights, config=config), strict=True
    ):
        if path is not None:
            print(f"{label}: {path}")


def convert(weights: str, out: str, config: Any = (), num_codebooks: int | None = None) -> None:
    """Turn weights of an earlier version into weights of this one; what they translate stays the same.

    Weights of fewer codebooks than asked for become a start for a training of stage 1.

    Args:
        weights: file of an earlier version, or of fewer codebooks.
        out: file to write.
        config: files that define the network, ``"['inference.json','preset_paper.json']"``; by default the bundle's.
        num_codebooks: codebooks of the network, by default what the config says.
    """
    from custom.commands.convert import convert as run

    print(f"Weights: {run(weights, out, config=config, num_codebooks=num_codebooks)}")


def import_weights(
    source: str,
    checkpoint: str,
    out: str,
    modalities: Any,
    unet_checkpoint: str | None = None,
    config: Any = (),
    intensity_range: Any = None,
    conditioning: str | None = None,
    strict: bool = True,
) -> None:
    """Turn weights from elsewhere into weights of this project, with the configs that use them.

    Args:
        source: ``release`` (the authors' first stage), ``monai`` or ``monai-generative``.
        checkpoint: file with the autoencoder and, for the release, MS-SPADE.
        out: file of weights to write; presets and a report of every tensor go beside it.
        modalities: in the order of the classes, ``t1,t1ce,t2,flair``.
        unet_checkpoint: file with a DiffusionModelUNet.
        config: JSON or YAML with the networks' definitions, for MONAI's layouts; several as ``"['a.json','b.json']"``.
        intensity_range: of the images that an autoencoder of MONAI's layouts was trained on, ``0,1``.
        conditioning: what a UNet takes beside the noisy latent: ``source``, ``target_like``,
            ``source_and_target_like`` or ``none``.
        strict: refuse a file with missing or unknown tensors.
    """
    from custom.commands.import_weights import import_weights as run
    from custom.commands.import_weights import report_text

    done = run(
        source, checkpoint, out, modalities, unet_checkpoint=unet_checkpoint, config=config,
        intensity_range=intensity_range, conditioning=conditioning, strict=strict,
    )  # fmt: skip
    print(report_text(done.tensors).partition("\n")[0])
    for label, path in zip(("Weights", "To use them as they are", "To train from them", "Tensors"), done, strict=False):
        print(f"{label}: {path}")


def measure_range(dataset_dir: str, weights: str) -> None:
    """Write into weights what the scans they were trained with are like; scans unlike them are warned about.

    A training does it by itself; this is for weights of before, or from elsewhere.

    Args:
        dataset_dir: data set that the weights were trained with, of which the training section counts.
        weights: file to write it into; nothing else in it changes.
    """
    from custom.commands.measure_range import measure_range as run

    print("\n".join(run(dataset_dir, weights)))


def prune_latents(cache_dir: str, unused_days: float = 7.0) -> None:
    """Remove cached latents that no training has started with for some days.

    Args:
        cache_dir: the trainings' ``cache_dir``, by default ``latents`` in their ``output_dir``.
        unused_days: 0 removes all.
    """
    from custom.training.latents.cache import prune_latents as run

    files, size = run(cache_dir, unused_days)
    print(f"removed {files} files, {size / 2**20:.1f} MiB")


def prepare(
    *shares: float,
    root: str,
    out: str = "datalist.json",
    layout: str = "brats2021",
    pattern: str | None = None,
    modalities: Any = None,
    split: Any = None,
    split_file: str | None = None,
    seed: int = 0,
    strict: bool = False,
    modality_check: bool = True,
    register: str | None = None,
    registered_dir: str | None = None,
    workers: int | None = None,
) -> None:
    """Find a data set's subjects, check every file, split by subject; write the datalist and prepare.html, prepare.txt.

    Args:
        root: folder of the data set.
        out: the datalist to write.
        layout: ``brats2021``, ``brats2023``, ``ixi`` or ``plain``.
        pattern: for ``plain``, such as ``"{subject}/{modality}.nii.gz"`` or ``"{subject}/{session}_{modality}.nii"``.
        modalities: list of modalities, in order; by default those of the layout, for ``plain`` what is found.
        split: shares of training, validation and test, ``--split 0.8 0.1 0.1``.
        split_file: JSON ``{"training": [ids], ...}`` or CSV ``id,section``, instead of shares.
        seed: of the split.
        strict: a subject with a problem is an error; otherwise it is named and left out.
        modality_check: look for subjects whose modalities' names are exchanged.
        register: a modality, to whose grid a subject's others are registered where they lie on another, or ``none``;
            by default ``t2`` for IXI.
        registered_dir: folder for the registered scans; by default beside the originals.
        workers: processes; by default one for each core.
    """
    from custom.preparation.page import summary as said
    from custom.preparation.prepare import prepare as run

    # fire gives a flag one value; the rest of "--split 0.8 0.1 0.1" arrives as positional arguments
    portions = (split, *shares) if isinstance(split, int | float) else split
    done = run(
        root, out, layout=layout, pattern=pattern, modalities=modalities, split=portions,
        split_file=split_file, seed=seed, strict=strict, modality_check=modality_check,
        register=register, registered_dir=registered_dir, workers=workers,
    )  # fmt: skip
    for subject, problems in done.left_out.items():
        print(f"left out: {subject}: " + "; ".join(f"{p.title}: {p.found}" for p in problems))
    print(f"{said(done)}\nDatalist: {done.datalist}\nReport: {done.datalist.with_name('prepare.html')}")


def report(output_dir: str) -> None:
    """Write tables, figures and report.html of an evaluation or comparison once more, from what its folder holds.

    Args:
        output_dir: the folder; PNG files in its ``extra/`` are shown too.
    """
    from custom.reports.report import report as run

    run(output_dir)


def compare(
    truth: str,
    predictions: Any,
    out: str = "output/comparison",
    pairs: Any = (),
    ranges: Any = None,
    num_figures: int = 2,
    viewer_megabytes: float = 40.0,
) -> None:
    """Score predictions of several models against one folder of true images; write tables, figures and report.html.

    Args:
        truth: folder of ``<subject>_<modality>`` images and ``<subject>_seg`` labels, or with a datalist.json.
        predictions: ``"{'ours': DIR, 'other': DIR}"``, files named ``<subject>_<source>_<target>``,
            ``<subject>_<target>_from_<source>`` or ``<subject>_<target>``; the first model is the one that the others
            are tested against.
        out: folder for the results.
        pairs: tasks to show, such as ``"[['t1','t2']]"``; by default all.
        ranges: ``"{'other': 'signed'}"``: intensities ``truth``, ``unit``, ``signed``, ``own``, ``auto`` or
            ``[0, 255]``, those that mean 0 and 1.
        num_figures: how many subjects are drawn.
        viewer_megabytes: how large the volumes in the report may be together.
    """
    from custom.commands.compare import compare as run

    if not isinstance(predictions, dict):
        raise ValueError(f"predictions: expected \"{{'model': FOLDER}}\"; found {predictions!r}. Quote it so.")
    run(truth, predictions, out, pairs=pairs, ranges=ranges, num_figures=num_figures, viewer_megabytes=viewer_megabytes)


COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__: command
    for command in (
        ablation, compare, convert, demo, export_weights, import_weights, measure_range, package, phantom, prepare,
        prune_latents, report, steps, summary, table1,
    )
}  # fmt: skip
# arguments that are a file or a folder
PATHS = (
    "cache_dir", "checkpoint", "image", "models_dir", "out", "output_dir", "registered_dir", "root", "split_file",
    "truth", "unet_checkpoint", "weights",
)  # fmt: skip


def check_words(words: Sequence[str]) -> None:
    """Refuse a command or flag that there is not: Fire runs the command first, with the defaults, and complains after.

    Args:
        words: of the command line, after ``python -m custom``.

    Raises:
        ValueError: naming the nearest command or flag.
    """
    words = list(words[: words.index("--")] if "--" in words else words)
    if not words or words[0].startswith("-") or {"--help", "-h"} & {*words}:
        return
    name = words[0].replace("-", "_")
    if name not in COMMANDS:
        raise _unknown(words[0], "a command", [command.replace("_", "-") for command in COMMANDS])
    parameters = signature(COMMANDS[name]).parameters
    kinds = [p.kind for p in parameters.values()]
    flags, free = _flags(words[1:])
    for flag in flags if Parameter.VAR_KEYWORD not in kinds else ():
        initials = [known for known in parameters if known[0] == flag]
        if flag not in parameters and flag.removeprefix("no") not in parameters and len(initials) != 1:
            raise _unknown(f"--{flag}", f"a flag of {words[0]}", [f"--{known}" for known in parameters])
    places = [k for k, p in parameters.items() if p.kind is Parameter.POSITIONAL_OR_KEYWORD and k not in flags]
    if len(free) > len(places) and Parameter.VAR_POSITIONAL not in kinds:
        raise ValueError(f"{words[0]}: expected flags; found {free[-1]!r} alone. Write its flag before it.")


def _flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the flags among words, and the words that belong to none."""
    flags, free, value = [], [], False
    for word in words:
        if re.match("--|-[A-Za-z]", word):  # as Fire has it: a negative number is none
            flag, equals, _ = word.lstrip("-").partition("=")
            flags.append(flag.replace("-", "_"))
            value = not equals
        else:
            free += [] if value else [word]
            value = False
    return flags, free


def _unknown(word: str, expected: str, known: Sequence[str]) -> ValueError:
    meant = nearest(word.lstrip("-"), [name.lstrip("-") for name in known])
    dashes = "--" if word.startswith("--") else ""
    advice = f"Did you mean {dashes}{meant}?" if meant else f"There are {', '.join(known)}."
    return ValueError(f"{word}: expected {expected}; found none. {advice}")


def _with_paths(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` that refuses an empty path, a number in the place of one, and a place that cannot be written to."""

    @wraps(command)
    def checked(*args: Any, **kwargs: Any) -> None:
        bound = signature(command).bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if name in PATHS and value is not None:
                check_path(name, value)
            if name in ("out", "output_dir") and command is not report:
                file = Path(value).expanduser()
                require_writable(file.parent if file.is_file() and name == "out" else file)
        command(*args, **kwargs)

    return checked


def main() -> None:
    words, debug = _without_debug(sys.argv[1:])
    report_plainly(debug)
    check_words(words)
    fire.Fire({name: _with_paths(command) for name, command in COMMANDS.items()}, words, name="python -m custom")


def _without_debug(words: Sequence[str]) -> tuple[list[str], bool | str]:
    """The words but for ``--debug true``, which every command has, and whether it is among them."""
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--debug":
            following = not equals and words[i + 1 : i + 2] and words[i + 1].lower() in ("true", "false")
            rest = [*words[:i], *words[i + (2 if following else 1) :]]
            return rest, value if equals else words[i + 1] if following else True
    return list(words), False


if __name__ == "__main__":
    main()
