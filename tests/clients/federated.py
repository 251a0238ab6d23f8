"""A client of MONAI FL, with its options at their defaults, on the bundle as it was downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterator

from harness import Check, Context, expect

__all__ = ["run"]

WARNING = "expected the weights of the stage before; found no file"
REFUSAL = "Run the training of train_spade.json first"

# a federation's server hands out the shipped weights, adds up what comes back, and hands out the sum
ROUND = """
import json, sys
import torch
import custom
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

root, data = sys.argv[1:]
assert custom.__file__.startswith(root), custom.__file__
weights = torch.load(root + "/models/model.pt", weights_only=True)
site = {"dataset_dir": data}
algo = MonaiAlgo(root, train_kwargs=dict(site), eval_kwargs=dict(site))
algo.initialize({ExtraItems.CLIENT_NAME: "site"})
before = dict(algo.evaluate(ExchangeObject(weights=weights)).metrics)  # the client fills one and the same again
algo.train(ExchangeObject(weights=weights))
update = algo.get_weights()
assert update.weight_type == WeightType.WEIGHT_DIFF, update.weight_type
assert set(update.weights) == set(weights), set(update.weights) ^ set(weights)
weights = {name: value + update.weights[name] for name, value in weights.items()}
after = algo.evaluate(ExchangeObject(weights=weights)).metrics
algo.finalize()
moved = {name.split(".")[0] for name, value in update.weights.items() if value.any()}
print(json.dumps({"before": before, "after": after, "moved": sorted(moved)}))
"""

SET_UP = """
import sys
from monai.bundle import create_workflow

root, data = sys.argv[1:]
for name in ("train_autoencoder", "train_spade", "train"):
    workflow = create_workflow(config_file=f"{root}/configs/{name}.json", workflow_type="train", dataset_dir=data)
    missing = workflow.check_properties()
    assert missing == [], f"{name}: {missing}"
"""


def run(context: Context) -> Iterator[Check]:
    """One round, and that a bundle as downloaded can be set up for each training but not run without the one before."""
    bundle = context.unpack(context.room("federated"))

    def set_up() -> str:
        said = context.python("-c", f"import sys; sys.stderr = sys.stdout\n{SET_UP}", bundle, context.phantoms)
        expect(said.count(WARNING) == 2, f"a warning for two trainings expected; found: {said[-1000:]}")
        return "3 trainings"

    def refuse() -> str:
        said = context.bundle_command(
            "run", "training", config_file=bundle / "configs" / "train.json", dataset_dir=context.phantoms, expected=1
        )
        expect(REFUSAL in said, f"expected {REFUSAL!r}; found: {said[-1000:]}")
        return said.strip().splitlines()[-1]

    def exchange() -> str:
        code = f"import sys; sys.stderr = sys.stdout\n{ROUND}"
        said = context.python("-c", code, bundle, context.phantoms, PYTHONPATH=str(bundle))
        expect(WARNING in said, f"expected a warning; found: {said[-1000:]}")
        report = json.loads(said.strip().splitlines()[-1])
        expect(report["moved"] == ["detail", "unet"], f"weights that moved: {report['moved']}")
        before, after = (report[when]["brain_psnr"] for when in ("before", "after"))
        expect(0 < before < 100 and 0 < after < 100 and before != after, f"PSNR {before} before, {after} after")
        return f"PSNR {before:.2f} dB before, {after:.2f} dB after one epoch"

    yield context.check("federated", "trainings of a bundle as downloaded are set up", set_up)
    yield context.check("federated", "a run without the stage before is refused", refuse)
    yield context.check("federated", "a round of MonaiAlgo with its defaults", exchange)
