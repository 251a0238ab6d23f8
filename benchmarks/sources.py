"""Several sources and the error map against one source: trains both sides alike, scores held-out subjects, draws them.

    python -m benchmarks.sources --data PHANTOMS --weights bundle/models/model.pt --out output/sources

Both sides start from the same weights, keep their first stage, and train stages 2 and 3 with the same steps and seed:
``set`` with random sets of sources, ``single`` with ``single_source.json``, whose network no fusion touches.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from custom.commands.workflows import bundle_workflow
from custom.data.datalist import load_datalist
from custom.data.foreground import foreground_key
from custom.evaluation.uncertainty import ErrorMapScores, ReliabilityBin, reliability, score_error_map
from custom.inference.translation import Translation, knows_errors
from custom.networks import LatentTranslator
from custom.networks.weights import load_weights
from custom.utils.files import atomic_write

SIDES: Mapping[str, Sequence[str]] = {"set": [], "single": ["single_source"]}
STAGES = {"train_spade": "spade", "train": "diffusion"}


class Item(NamedTuple):
    """A preprocessed subject: images (1, 1, H, W, D) in [-1, 1] by modality, brain and lesion."""

    name: str
    images: dict[str, Tensor]
    brain: Tensor
    lesion: Tensor


def train(side: str, settings: argparse.Namespace) -> Path:
    """Stages 2 and 3 of one side; what was trained is not trained again, a training that was ended goes on."""
    out, weights = Path(settings.out), str(Path(settings.weights).absolute())
    final = out / side / "model.pt"
    if final.is_file():
        return final
    for stage, folder in STAGES.items():
        if (out / side / folder / "best.pt").is_file():
            continue
        epochs = settings.spade_epochs if stage == "train_spade" else settings.epochs
        values: dict[str, Any] = {
            "dataset_dir": settings.data, "pretrained": weights, "autoencoder_path": weights,
            "spade_path": str(out / side / "spade" / "best.pt"), "ckpt_path": str(final),
            "output_dir": str(out / side), "stage_dir": str(out / side / folder), "cache_dir": str(out / "latents"),
            "max_epochs": epochs, "val_interval": 10 * epochs, "checkpoint_interval": 1, "cache_rate": 0.0,
            "resume": (out / side / folder / "last.pt").is_file(),
            "warmup_steps": settings.warmup, "learning_rate": settings.rate, "seed": settings.seed, "amp": "auto",
            "subjects_per_batch": 1, "pairs_per_subject": settings.pairs, "latent_crop": [settings.crop] * 3,
            "part_size": settings.part,
            "adversarial_start_epoch": 10 * epochs, "device": "$torch.device('cpu')",
        }  # fmt: skip
        workflow = bundle_workflow(stage, {}, overlays=SIDES[side])
        for key in (k for k in values if k in workflow.parser):
            workflow.parser[key] = values[key]
        started = time.monotonic()
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        print(f"{side}, {stage}: {epochs} epochs, {time.monotonic() - started:.0f} s", flush=True)
    return final


def make_network(weights: str | Path | None) -> LatentTranslator:
    network = bundle_workflow("inference", {"bundle_code": []}).parser.get_parsed_content("network_def").eval()
    return network if weights is None else load_weights(network, weights)


def subjects(data: str, section: str, count: int) -> Iterator[Item]:
    parser = bundle_workflow("evaluate", {"dataset_dir": data, "bundle_code": []}).parser
    modalities = parser.get_parsed_content("modalities")
    preprocess = parser.get_parsed_content("preprocessing")
    for entry in load_datalist(data, section, modalities)[:count]:
        item = preprocess(entry)
        images = {m: torch.as_tensor(item[m]).as_subclass(Tensor)[None].float() for m in modalities if m in item}
        brain = torch.stack([torch.as_tensor(item[foreground_key(m)]).as_subclass(Tensor)[None] > 0 for m in images])
        yield Item(
            entry["subject"], images, brain.any(dim=0), torch.as_tensor(item["seg"]).as_subclass(Tensor)[None] > 0
        )


def brain_psnr(image: Tensor, truth: Tensor, brain: Tensor) -> float:
    """In dB, of images in [-1, 1]."""
    return float(-10 * torch.log10(((image - truth) / 2)[brain].square().mean()))


def gradient_magnitude(image: Tensor) -> np.ndarray:
    gradients = np.gradient(image[0, 0].numpy())
    return np.sqrt(sum(g**2 for g in gradients))


def score_subject(
    item: Item, networks: Mapping[str, LatentTranslator], targets: Sequence[int]
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Rows of what each network makes of each target, and the error maps' scores."""
    rows, maps, modalities = [], [], list(item.images)
    for index in targets:
        target = modalities[index]
        truth, names = item.images[target], [m for m in modalities if m != target]
        for side, network in networks.items():
            knows, singles = knows_errors(network), []
            for sources in [[name] for name in names] + ([names] if side != "single" else []):
                stack = torch.cat([item.images[name] for name in sources], dim=1)
                found = Translation(network, stack, mask=item.brain).translate(index, uncertainty=knows)
                psnr = brain_psnr(found.image, truth, item.brain)
                rows.append({"side": side, "sources": sources, "target": target, "psnr": psnr, "subject": item.name})
                if len(sources) == 1:
                    singles.append(found.image)
                if found.uncertainty is not None and side != "single":
                    maps.append((len(sources), *_error_map(found.uncertainty, found.image, truth, stack, item)))
            mean = torch.stack(singles).mean(dim=0)
            average = {"side": side, "sources": ["average of singles"], "target": target, "subject": item.name}
            rows.append({**average, "psnr": brain_psnr(mean, truth, item.brain)})
    return rows, maps


def _error_map(
    expected: Tensor, image: Tensor, truth: Tensor, sources: Tensor, item: Item
) -> tuple[ErrorMapScores, float]:
    """Scores of the map, and the rank correlation of the (first) source's gradient magnitude with the error."""
    brain, lesion = (x[0, 0].numpy() for x in (item.brain, item.lesion))
    error = (image - truth).abs()[0, 0].numpy()
    scores = score_error_map(error, expected[0, 0].numpy(), brain, lesion)
    edges = score_error_map(error, gradient_magnitude(sources[:, :1]), brain).correlation
    return scores, edges


def cost(count: int, size: Sequence[int], weights: str) -> dict[str, float]:
    """Seconds of one core and peak MiB of a fresh process that translates ``count`` sources into one target, twice."""
    command = [sys.executable, "-m", "benchmarks.sources", "--cost", str(count), "--size", *map(str, size)]
    done = subprocess.run([*command, "--weights", weights], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_cost(count: int, size: Sequence[int], weights: str) -> dict[str, float]:
    torch.set_num_threads(1)
    network, image = make_network(weights), torch.rand(1, count, *size) * 2 - 1
    base, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(2):
        started = time.process_time()
        Translation(network, image).translate(2)
        seconds.append(time.process_time() - started)
    return {
        "seconds": min(seconds),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "base": base / 1024,
    }


class Mark(NamedTuple):
    name: str
    found: float
    bound: float
    holds: bool


def summarize(
    rows: Sequence[Mapping[str, Any]], maps: Sequence[Any], costs: Sequence[Mapping[str, float]]
) -> list[Mark]:
    def mean(side: str, count: int | None) -> float:
        """Of subjects and targets, for ``count`` sources; None: the average of the singles' images."""
        chosen = [
            r["psnr"] for r in rows
            if r["side"] == side and (r["sources"][0] == "average of singles") is (count is None)
            and (count is None or len(r["sources"]) == count)
        ]  # fmt: skip
        return float(np.mean(chosen))

    one, three, without, average = mean("set", 1), mean("set", 3), mean("single", 1), mean("set", None)
    ranks = float(np.mean([scores.correlation for _, scores, _ in maps]))
    edges = float(np.mean([edge for *_, edge in maps]))
    worst = max((abs(b.expected / b.observed - 1) for b in bins(maps)), default=float("nan"))
    time_ratio, memory = (costs[1][k] / costs[0][k] for k in ("seconds", "memory"))
    return [
        Mark("one source, against the network without fusion (dB)", one - without, -0.1, one - without >= -0.1),
        Mark("three sources, above the mean of the single ones (dB)", three - one, 1.5, three - one >= 1.5),
        Mark(
            "three sources, above the average of their translations (dB)", three - average, 0.5, three - average >= 0.5
        ),
        Mark("rank correlation of the error map with the error", ranks, 0.4, ranks >= 0.4),
        Mark("the same, above that of the source's gradient", ranks - edges, 0.1, ranks - edges >= 0.1),
        Mark("largest deviation of a bin's expected from its observed error", worst, 0.2, worst <= 0.2),
        Mark("time of 3 → 1 against 1 → 1", time_ratio, 2.2, time_ratio <= 2.2),
        Mark("memory of 3 → 1 against 1 → 1", memory, 1.5, memory <= 1.5),
    ]


def bins(maps: Sequence[Any]) -> tuple[ReliabilityBin, ...]:
    return reliability([scores for _, scores, _ in maps])


def draw(item: Item, network: LatentTranslator, target: str, out: Path) -> None:
    """Truth, each single source's translation and that of all, with errors and error maps, in a middle slice."""
    from matplotlib.figure import Figure

    names, index = [m for m in item.images if m != target], list(item.images).index(target)
    truth = item.images[target]
    columns = [[name] for name in names] + [names]
    figure = Figure(figsize=(3 * (len(columns) + 1), 9.5), layout="constrained")
    axes, middle = figure.subplots(3, len(columns) + 1), truth.shape[-1] // 2
    for a in axes.flat:
        a.set_axis_off()
    axes[0, 0].imshow(truth[0, 0, :, :, middle].T, cmap="gray", origin="lower", vmin=-1, vmax=1)
    axes[0, 0].set_title(f"truth, {target}")
    for column, sources in enumerate(columns, start=1):
        stack = torch.cat([item.images[name] for name in sources], dim=1)
        found = Translation(network, stack, mask=item.brain).translate(index, uncertainty=knows_errors(network))
        error = (found.image - truth).abs() * item.brain
        axes[0, column].imshow(found.image[0, 0, :, :, middle].T, cmap="gray", origin="lower", vmin=-1, vmax=1)
        axes[0, column].set_title(f"{' + '.join(sources)}\n{brain_psnr(found.image, truth, item.brain):.2f} dB")
        for row, values in ((1, error), (2, found.uncertainty)):
            if values is not None:
                axes[row, column].imshow(values[0, 0, :, :, middle].T, cmap="magma", origin="lower", vmin=0, vmax=0.6)
                axes[row, column].set_title("error" if row == 1 else "expected error")
    figure.savefig(out / f"{item.name}_{target}.png", dpi=80)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sources", description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of a data set with its datalist.json")
    parser.add_argument("--weights", required=True, help="both sides start from these")
    parser.add_argument("--out", default="output/sources")
    parser.add_argument("--spade-epochs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=2, help="of a subject, in a step")
    parser.add_argument("--crop", type=int, default=16, help="latent voxels of a crop along each axis")
    parser.add_argument("--part", type=int, default=12, help="latent voxels of what is decoded")
    parser.add_argument("--warmup", type=int, default=20, help="steps")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--sides", default="set,single", help="that are trained; another one keeps the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--section", default="test")
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--targets", type=int, default=4, help="of a subject, in turn")
    parser.add_argument("--size", type=int, nargs=3, default=(144, 176, 144))
    parser.add_argument("--cost", type=int, help="only measure translating so many sources, and print it as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    settings = arguments(argv)
    if settings.cost:
        print(json.dumps(measure_cost(settings.cost, settings.size, settings.weights)))
        return
    sides = settings.sides.split(",")
    networks = {side: make_network(train(side, settings) if side in sides else settings.weights) for side in SIDES}
    rows: list[dict[str, Any]] = []
    maps: list[Any] = []
    for number, item in enumerate(subjects(settings.data, settings.section, settings.subjects)):
        turn = [(number + k) % len(item.images) for k in range(settings.targets)]
        found, of_maps = score_subject(item, networks, turn)
        rows, maps = rows + found, maps + of_maps
        maps_here = [(count, round(scores.correlation, 3), round(edge, 3)) for count, scores, edge in of_maps]
        told = [f"{r['side']} {'+'.join(r['sources'])}: {r['psnr']:.2f}" for r in found]
        print(
            f"{item.name}, {found[0]['target']}: {', '.join(told)} dB; (sources, rank, edges) {maps_here}", flush=True
        )
        if number < 2:
            draw(item, networks["set"], list(item.images)[2 * number], Path(settings.out))
    costs = [cost(count, settings.size, settings.weights) for count in (1, 3)]
    marks, curve = summarize(rows, maps, costs), bins(maps)
    lesions = [scores.lesion_share for _, scores, _ in maps]
    result = {"rows": rows, "marks": [m._asdict() for m in marks], "bins": curve, "costs": costs}
    with atomic_write(Path(settings.out) / "marks.json") as temporary:
        temporary.write_text(json.dumps({**result, "lesion_share": float(np.nanmean(lesions))}, indent=1))
    print("| mark | found | asked for | |\n| --- | --- | --- | --- |")
    for mark in marks:
        print(f"| {mark.name} | {mark.found:.3f} | {mark.bound:g} | {'holds' if mark.holds else 'fails'} |")
    print("\n| bin | expected | observed |\n| --- | --- | --- |")
    for number, one in enumerate(curve, start=1):
        print(f"| {number} | {one.expected:.4f} | {one.observed:.4f} |")
    print(f"\nlesion voxels among the 5 % most uncertain: {np.nanmean(lesions):.3f}")


if __name__ == "__main__":
    main()
