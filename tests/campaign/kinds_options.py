"""Options that nobody can mean, and places that cannot be written to."""

from __future__ import annotations

from kinds import kind
from rooms import Room


def _option(name: str, value: object, *says: str) -> None:
    """A translation of a healthy scan with one option that is wrong."""

    @kind("options", f"--{name} {value!r}", name.split("#")[0], *says)
    def _(room: Room) -> list[object]:
        return room.inference(room.base.scan, **{name: value})


_option("images", "x.nii.gz", "image")
_option("target", "flair", "targets")
_option("outputdir", "somewhere", "output_dir")
_option("num_steps", 4, "num_inference_steps")
_option("targets", "pet", "t1", "pet")
_option("targets", "")
_option("targets", "['t1','t1']")
_option("targets", "[]")
_option("device", "cuda", "CUDA|cuda", "cpu")
_option("device", "cuda:99", "cpu")
_option("device", "gpu", "cpu")
_option("amp", "maybe", "true")
_option("seed", "many")
_option("seed", -1)
_option("num_samples", 0)
_option("num_samples", 1.5)
_option("num_inference_steps", -1)  # 0 stands for the network's own
_option("num_inference_steps", 100000)
_option("volume_size", "huge", "brats")
_option("volume_size", "[1,2]")
_option("volume_size", "[-1,160,160]")
_option("spatial_divisor", 0)
_option("spatial_divisor", "wide")
_option("dataset_dir", "")
_option("modalities", "[]")
_option("network_def#unet#num_head", 4, "num_heads")


@kind("options", "an empty image", "image")
def _(room: Room) -> list[object]:
    return room.inference("")


@kind("options", "an empty output folder", "output_dir")
def _(room: Room) -> list[object]:
    return room.inference(room.base.scan, output_dir="")


@kind("options", "an output folder that is a file", "taken")
def _(room: Room) -> list[object]:
    return room.inference(room.base.scan, output_dir=room.write("taken", "a file"))


@kind("options", "an output folder below a file", "taken")
def _(room: Room) -> list[object]:
    return room.inference(room.base.scan, output_dir=room.write("taken", "a file") / "out")


@kind("options", "an output folder that cannot be made", "/proc")
def _(room: Room) -> list[object]:
    return room.inference(room.base.scan, output_dir="/proc/1/out")


@kind("options", "a bundle root that is none", "bundle_root|model.pt|configs")
def _(room: Room) -> list[object]:
    return room.inference(room.base.scan, bundle_root=room.folder)


@kind("options", "a command that does not exist", "expected|known|choose|commands?")
def _(room: Room) -> list[object]:
    return room.custom("translate")


def _training(name: str, value: object, *says: str, config: str = "train_autoencoder") -> None:
    """A training of a healthy data set with one option that is wrong."""

    @kind("options", f"{config} --{name} {value!r}", name.split("#")[0], *says)
    def _(room: Room) -> list[object]:
        return room.training(config, **{name: value})


_training("max_epoch", 3, "max_epochs")
_training("max_epochs", 0)
_training("max_epochs", "many")
_training("batch_size", 0)
_training("crop_size", "[0,0,0]")
_training("learning_rate", -1)
_training("learning_rate", "fast")
_training("resume", "yes")
_training("accumulation_steps", 0)
_training("dataset_dir", "absent", "absent")
_training("val_interval", 0)
_training("seed", "x")


@kind("options", "train_autoencoder: no such weights to start from", r"absent\.pt", "found no file")
def _(room: Room) -> list[object]:
    return room.training(pretrained="absent.pt")
