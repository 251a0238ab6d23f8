"""The inferer that evaluation, the command line and MONAI Label share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

from custom.networks.diffusion import draw_noise
from custom.networks.fast.workspace import shared_workspace
from custom.utils.errors import for_label_client
from custom.utils.modalities import BRATS_MODALITIES, canonical, target_indices
from custom.utils.precision import amp_choice, uses_bfloat16

__all__ = ["TranslationInferer"]


class TranslationInferer(Inferer):
    """Translate sources into one target modality or several; each source is encoded once for all of them.

    The noise comes from ``seed`` alone and is the same for every item of a batch, so that a volume's translation does
    not depend on the batch, the device or the order of files.

    Args:
        targets: one modality or several, aliases allowed.
        modalities: the vocabulary that the weights were trained with, in order.
        seed: of the noise.
        num_samples: noise draws whose images are averaged.
        num_inference_steps: sampler steps; 0 or None for the network's default.
        amp: run the network under bfloat16 autocast; ``"auto"`` where the device computes faster in it. The result is
            float32 in any case.

    Raises:
        ValueError: for an unknown target, fewer than one sample, or a negative number of steps. In the server of MONAI
            Label the call raises instead, an error whose text reaches the client: MONAI wraps what constructors raise.
    """

    # a translation does not depend on the others that are asked for
    not_in_identity = ("targets", "indices", "fault")

    def __init__(
        self,
        targets: str | Sequence[str],
        modalities: Sequence[str] = BRATS_MODALITIES,
        *,
        seed: int = 0,
        num_samples: int = 1,
        num_inference_steps: int | None = 0,
        amp: bool | str = False,
    ) -> None:
        self.modalities = tuple(modalities)
        self.seed = int(seed)
        self.amp = amp_choice(amp)
        self.fault: Exception | None = None
        try:
            self.indices = target_indices(targets, modalities)
            self.targets = [canonical(modalities[i]) for i in self.indices]
            self.num_samples = _whole("num_samples", num_samples, smallest=1)
            self.num_steps = _whole("num_inference_steps", num_inference_steps or 0, smallest=0)
        except ValueError as error:
            self.fault = for_label_client(error)
            if self.fault is None:
                raise

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Translate a batch.

        Args:
            inputs: sources (B, 1, H, W, D) in [-1, 1]; H, W, D divisible by the network's ``spatial_divisor``.
            network: a ``LatentTranslator``, or any callable ``(image, target) -> image``, such as an exported one.
            args: not used.
            kwargs: not used.

        Returns:
            (B, K, H, W, D) float32 in [-1, 1], one channel a target in their order, with the metadata of ``inputs``.

        Raises:
            ValueError: if the network has another number of modalities, or if steps were asked for and it is a plain
                callable, whose number of steps is fixed.
        """
        if self.fault is not None:
            raise self.fault
        known = getattr(network, "num_modalities", len(self.modalities))
        if known != len(self.modalities):
            raise ValueError(
                f"modalities: expected the {known} of the network; found {len(self.modalities)}. Give the inferer the "
                "vocabulary that the weights were trained with."
            )
        image = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        total: torch.Tensor | None = None
        amp = uses_bfloat16(self.amp, image.device)
        autocast = torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=amp)
        with torch.no_grad(), autocast, shared_workspace():
            for seed in range(self.seed, self.seed + self.num_samples):
                with _seeded(seed, image.device):
                    sample = self._translate(image, network, seed)
                total = sample if total is None else total + sample
        prediction = (total / self.num_samples).clamp(-1.0, 1.0)
        return convert_to_dst_type(prediction, dst=inputs, dtype=torch.float32)[0]

    def _translate(self, image: torch.Tensor, network: Callable[..., torch.Tensor], seed: int) -> torch.Tensor:
        """One draw for all targets; rendered one after the other, which bounds the memory of the full resolution."""
        targets = [torch.full((image.shape[0],), i, dtype=torch.long, device=image.device) for i in self.indices]
        if not all(hasattr(network, part) for part in ("encode", "transfer", "sample", "render")):
            if self.num_steps:
                raise ValueError(
                    f"num_inference_steps: the network ({type(network).__name__}) has a fixed number of steps; "
                    f"found {self.num_steps}. Leave it out."
                )
            return torch.cat([network(image, target).float() for target in targets], dim=1)
        latent = network.encode(image)
        noise = draw_noise(latent, seed)
        channels = []
        for target in targets:
            sampled = network.sample(latent, network.transfer(latent, target), target, noise, self.num_steps)
            channels.append(network.render(sampled, image, target).float())
        return torch.cat(channels, dim=1)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators for what a network draws by itself, and leave them as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.random.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield


def _whole(name: str, value: int | str, *, smallest: int) -> int:
    """``value``, which clients may send as text, as a number."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = smallest - 1
    if number < smallest:
        raise ValueError(f"{name}: expected a whole number of at least {smallest}; found {value}. Correct it.")
    return number
