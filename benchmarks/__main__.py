"""Command line of the benchmarks; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.folder import measure_folder
from benchmarks.measure import machine
from benchmarks.page import fill_page, load_result, plain
from benchmarks.parts import measure_parts
from benchmarks.quality import measure_quality
from benchmarks.report import PRECISIONS, markdown, marks
from benchmarks.scale import SIZES, measure_scaling
from benchmarks.stock import measure_stock
from benchmarks.subject import make_network, read_config, write_head
from benchmarks.whole import translate_in_fresh_process
from custom.inference.inferer import TranslationInferer
from custom.networks import LatentTranslator
from custom.utils.bundle import config_folder
from custom.utils.files import atomic_write
from custom.utils.precision import fast_bfloat16

TARGETS = ["t2", "flair", "t1ce"]
FEW_STEPS = 4  # in place of the published presets' 200 steps
SMALL_SIZE = (192, 192, 144)
QUALITY_SIZE = (96, 96, 96)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--preset", default="release", help="small, release or paper (default: release)")
    parser.add_argument("--size", type=int, nargs=3, default=(144, 192, 144), help="voxels of the volume")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=-1, help="sampler steps (default: the preset's, at most 4)")
    parser.add_argument("--small-size", type=int, nargs=3, default=SMALL_SIZE, help="voxels for the small preset")
    parser.add_argument("--precision", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--out", default="output/benchmarks", help="folder for the JSON and Markdown files")
    parser.add_argument("--page", help="Markdown page whose figures are replaced, such as bundle/docs/performance.md")
    parser.add_argument("--result", help="do not measure: take the figures of this JSON file")
    parser.add_argument(
        "--skip", nargs="*", default=[], choices=["stock", "whole", "scale", "small", "quality", "folder"]
    )
    return parser.parse_args(argv)


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that is not skipped."""
    device, size = torch.device(args.device), tuple(args.size)
    sections = tqdm(desc="benchmarks", unit="section")
    with tempfile.TemporaryDirectory() as folder:
        config = read_config(args.preset, output_dir=folder, targets=TARGETS[:1])
        network = make_network(config, device)
        steps = few_steps(network, args.steps)
        image = write_head(Path(folder) / "head.nii.gz", size)
        result: dict[str, Any] = {
            "preset": args.preset,
            "size": size,
            "steps": steps,
            "device": args.device,
            "commit": _commit(),
            "machine": machine(device),
            "default_precision": "bfloat16" if fast_bfloat16(device) else "float32",
            **{"parts": {}, "stock": {}, "whole": [], "scaling": None, "small": None},
        }
        for precision in args.precision:
            amp = PRECISIONS[precision]
            sections.set_postfix_str(f"parts, {precision}")
            result["parts"][precision], kept = measure_parts(config, network, image, device, amp=amp)
            sections.update()
            if "stock" not in args.skip:
                sections.set_postfix_str(f"stock parts, {precision}")
                result["stock"][precision] = measure_stock(config, network, kept, device, amp=amp)
                sections.update()
            del kept
        if "scale" not in args.skip:
            sections.set_postfix_str("cost against voxels")
            vocabulary = config.get_parsed_content("modalities")
            inferer = TranslationInferer("t2", vocabulary, num_inference_steps=steps, amp="auto")
            result["scaling"] = measure_scaling(network, inferer, device, [s for s in SIZES if _fits(s, network)])
            sections.update()
    del network
    if "whole" not in args.skip:
        result["whole"] = _wholes(args, steps, sections)
    if "small" not in args.skip:
        sections.set_postfix_str("small preset")
        try:
            result["small"] = small(args, device)
        except (OSError, RuntimeError, ValueError) as error:  # what was measured before is not lost
            print(f"error: the small preset was not measured: {error}", file=sys.stderr)
        sections.update()
    sections.close()
    result["marks"] = marks(result)
    return result


def small(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The small preset with its shipped weights: parts, a whole run, image quality, a folder."""
    amp, size, bundle = fast_bfloat16(device), tuple(args.small_size), config_folder().parent
    weights, data = bundle / "models" / "model.pt", bundle / "data" / "phantom"
    quality = folder = None
    with tempfile.TemporaryDirectory() as place:
        config = read_config("small", output_dir=place, targets=TARGETS[:1])
        network = make_network(config, device, weights=str(weights))
        steps = network.num_inference_steps
        image = write_head(Path(place) / "head.nii.gz", size)
        parts, _ = measure_parts(config, network, image, device, amp=amp)
        if "quality" not in args.skip and (data / "datalist.json").is_file():
            block = tuple(min(*pair) for pair in zip(size, QUALITY_SIZE, strict=True))
            quality = measure_quality(config, network, device, amp=amp, steps=steps, data=data, size=block)
    settings = {"preset": "small", "size": size, "device": args.device, "weights": str(weights)}
    whole = translate_in_fresh_process(**settings, targets=TARGETS[:1], amp=amp, steps=steps)
    if "folder" not in args.skip:
        folder = measure_folder(size, device=args.device)
    found = {"size": size, "steps": steps, "parts": parts, "whole": whole}
    return {**found, "quality": quality, "folder": folder}


def few_steps(network: LatentTranslator, wanted: int) -> int:
    """Steps of the default sampler: those asked for, or the preset's where they are few."""
    return wanted if wanted >= 0 else min(network.num_inference_steps, FEW_STEPS)


def _wholes(args: argparse.Namespace, steps: int, sections: tqdm) -> list[Any]:
    found = []
    for precision in args.precision:
        for targets in (TARGETS[:1], TARGETS):
            if len(targets) > 1 and precision != args.precision[-1]:
                continue  # once is enough
            sections.set_postfix_str(f"fresh process, {precision}, {len(targets)} targets")
            settings = {"preset": args.preset, "size": list(args.size), "device": args.device, "targets": targets}
            found.append(translate_in_fresh_process(**settings, amp=PRECISIONS[precision], steps=steps))
            sections.update()
    return found


def _fits(size: Sequence[int], network: LatentTranslator) -> bool:
    return all(n % network.spatial_divisor == 0 for n in size)


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    if args.result:
        result = load_result(args.result)
    else:
        result = benchmark(args)
        name = f"{args.preset}_{'x'.join(map(str, args.size))}_{torch.device(args.device).type}"
        for suffix, text in ((".json", json.dumps(plain(result), indent=2) + "\n"), (".md", markdown(result))):
            with atomic_write(Path(args.out) / f"{name}{suffix}") as path:
                path.write_text(text, encoding="utf-8")
    print(markdown(result))
    if args.page:
        fill_page(args.page, result)


if __name__ == "__main__":
    logging.getLogger("custom").setLevel(logging.WARNING)
    main()
