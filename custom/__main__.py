"""Command line: ``python -m custom COMMAND``. What MONAI's own ``python -m monai.bundle`` does is not repeated here."""

from __future__ import annotations

import sys
from typing import Any

import fire

from custom.errors import report_plainly


def phantom(out: str, subjects: int = 48, seed: int = 0, spacing: float = 1.0, modalities: Any = None) -> None:
    """Make a data set of synthetic brains in the BraTS 2021 layout.

    Args:
        out: folder to write to; subjects that are complete there are kept.
        subjects: how many.
        seed: the same seed and number give the same brains.
        spacing: edge length of a voxel in mm.
        modalities: list of contrasts, by default t1, t1ce, t2, flair.
    """
    from custom.data.phantom import write_dataset
    from custom.modalities import BRATS_MODALITIES

    folders = write_dataset(out, subjects, seed, modalities or BRATS_MODALITIES, spacing=spacing)
    print(f"{len(folders)} subjects in {out}")


def ablation(output_dir: str = "output/ablation", **settings: Any) -> None:
    """Train and evaluate the ablations of the paper's Table 3 on phantoms, and write the table.

    Args:
        output_dir: where everything goes; what is complete there is not done again.
        settings: ``--variants ours,kl``, ``--share 0.2`` of the epochs, ``--subjects 24,2,6``, ``--spacing 2.0``
            mm, ``--dataset_dir DIR`` in place of phantoms, ``--seed 0``, ``--amp true``, values of the configs.
    """
    from custom.ablation import ablation as run

    run(output_dir, **settings)


def demo(image: str | None = None, output_dir: str = "output/demo", **overrides: Any) -> None:
    """Translate a held-out phantom, and ``image`` if given, with the shipped weights; print scores, draw pictures.

    Args:
        image: a file, or a folder of subjects in the BraTS 2021 layout.
        output_dir: where the results go.
        overrides: values of the bundle's configs, such as ``--amp true``.
    """
    from custom.demo import demo as run

    run(image, output_dir, **overrides)


def steps(output_dir: str = "output/steps", **settings: Any) -> None:
    """Measure quality against sampler steps on validation subjects; write steps.csv, a table and steps.png.

    Args:
        output_dir: where the results go.
        settings: ``--subjects 4``, ``--models_dir DIR`` of an ablation and ``--models ours,epsilon`` of it,
            ``--curves "{'DDIM': [1, 2]}"``, ``--seed 0``, ``--amp true``, values of evaluate.json.
    """
    from custom.steps import steps as run

    run(output_dir, **settings)


def summary(*sizes: int, preset: str = "small", size: Any = (192, 192, 144)) -> None:
    """Print parameters by part, latent shape and FLOPs of each step of a translation.

    Args:
        preset: ``small``, ``paper`` or ``release``.
        size: voxels of the volume, ``--size 192 192 144``.
    """
    from custom.summary import summary as run

    # fire gives a flag one value; the rest of "--size 192 192 144" arrives as positional arguments
    run(preset=preset, size=(size, *sizes) if isinstance(size, int) else tuple(size))


def package(out: str = "dist", weights: str | None = None) -> None:
    """Write the Model Zoo artifact, a zip that works without this repository.

    Args:
        out: folder for it.
        weights: pack these instead of the bundle's model.pt, after checking that they fit.
    """
    from custom.package import package as run

    print(run(out, weights))


def prune_latents(cache_dir: str, unused_days: float = 7.0) -> None:
    """Remove cached latents that no training has started with for some days.

    Args:
        cache_dir: the trainings' ``cache_dir``, by default ``latents`` in their ``output_dir``.
        unused_days: 0 removes all.
    """
    from custom.data.latent_cache import prune_latents as run

    files, size = run(cache_dir, unused_days)
    print(f"removed {files} files, {size / 2**20:.1f} MiB")


def main() -> None:
    report_plainly()
    commands = (ablation, demo, package, phantom, prune_latents, steps, summary)
    fire.Fire({command.__name__: command for command in commands}, name="python -m custom")


if __name__ == "__main__":
    sys.exit(main())
