"""The model zoo's verification of a bundle, with the functions that its ``ci/verify_bundle.py`` calls.

Source: https://github.com/Project-MONAI/model-zoo/blob/dev/ci/verify_bundle.py. Left out is what compares with the
zoo's own list of models: that a version is not taken yet.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from harness import Check, Context, expect

__all__ = ["run"]

SCHEMA = Path(__file__).with_name("meta_schema_20240725.json")  # the zoo's; a download would need the network
NEEDED = ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt")

VERSIONS = """
import json, sys
from importlib.metadata import version
metadata = json.load(open(sys.argv[1]))
named = {"torch": metadata["pytorch_version"], "monai": metadata["monai_version"], "numpy": metadata["numpy_version"]}
named |= metadata["required_packages_version"]
print(json.dumps({name: [wanted, version(name)] for name, wanted in named.items()}))
"""
CKPT_EXPORT = """
import sys
import torch
from monai.bundle import ckpt_export
bundle, path = sys.argv[1:]
ckpt_export(
    net_id="network_def", filepath=path, ckpt_file=bundle + "/models/model.pt",
    meta_file=bundle + "/configs/metadata.json", config_file=bundle + "/configs/inference.json", bundle_root=bundle,
)
state = torch.load(bundle + "/models/model.pt", weights_only=True)
torch.jit.load(path).load_state_dict(state, strict=True)
print(len(state))
"""
PROPERTIES = """
import json, sys
from monai.bundle import create_workflow
bundle, kind, overrides = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
workflow = create_workflow(config_file=f"{bundle}/configs/{kind}.json", workflow_type=kind, **overrides)
print(json.dumps(workflow.check_properties()))
"""


def run(context: Context) -> Iterator[Check]:
    """Files, versions, schema, shapes, export and properties."""
    bundle = context.unpack(context.room("zoo"))
    check = partial(context.check, "zoo")
    yield check("files, and the version in the changelog", lambda: _files(bundle))
    yield check("versions are exact and those that pip installed", lambda: _versions(context, bundle))
    yield check("verify_metadata", lambda: _metadata(context, bundle))
    yield check("verify_net_in_out", lambda: _net_in_out(context, bundle))
    yield check("ckpt_export, strict load", lambda: _export(context, bundle))
    overrides = {"image": str(context.scans.las)}
    yield check("properties of inference.json", lambda: _properties(context, bundle, "inference", overrides))


def _files(bundle: Path) -> str:
    absent = [name for name in NEEDED if not (bundle / name).is_file()]
    expect(not absent, f"absent: {absent}")
    metadata = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    expect(metadata["version"] in metadata["changelog"], f"{metadata['version']} is not in the changelog")
    return metadata["version"]


def _versions(context: Context, bundle: Path) -> str:
    versions = json.loads(context.python("-c", VERSIONS, bundle / "configs/metadata.json"))
    wrong = {
        name: (wanted, found)
        for name, (wanted, found) in versions.items()
        if not re.fullmatch(r"\d+(\.\d+)+", wanted) or found.partition("+")[0] != wanted
    }
    expect(not wrong, f"declared and installed: {wrong}")
    return f"{len(versions)} packages"


def _metadata(context: Context, bundle: Path) -> None:
    schema = context.room("zoo") / SCHEMA.name
    shutil.copy(SCHEMA, schema)
    metadata = bundle / "configs/metadata.json"
    expect(json.loads(metadata.read_text())["schema"].endswith(SCHEMA.name), "another schema is declared")
    context.bundle_command("verify_metadata", meta_file=metadata, filepath=schema)


def _net_in_out(context: Context, bundle: Path) -> None:
    context.bundle_command(
        "verify_net_in_out", net_id="network_def", meta_file=bundle / "configs/metadata.json",
        config_file=bundle / "configs/inference.json", bundle_root=bundle,
    )  # fmt: skip


def _export(context: Context, bundle: Path) -> str:
    path = bundle / "models" / "verify_model.ts"
    return f"{context.python('-c', CKPT_EXPORT, bundle, path, PYTHONPATH=str(bundle)).split()[-1]} tensors"


def _properties(context: Context, bundle: Path, kind: str, overrides: dict[str, str]) -> None:
    said = context.python("-c", PROPERTIES, bundle, kind, json.dumps(overrides))
    missing = json.loads(said.splitlines()[-1])
    expect(missing == [], f"missing: {missing}")
