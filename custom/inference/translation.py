"""One translation, from the source images to the target's masked image: the one place that puts its steps together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from custom.data.foreground import BACKGROUND
from custom.inference.cost import Cost, Meter
from custom.networks.diffusion import draw_noise
from custom.networks.fast import accelerate
from custom.utils.arguments import as_bool
from custom.utils.precision import uses_bfloat16

__all__ = ["Latents", "Sampling", "Translated", "Translation", "knows_errors", "require_error_map"]

STEPS = ("encode", "transfer", "fuse", "sample", "render")

Value = TypeVar("Value")
Latents = dict[Hashable, tuple[Any, Cost]]


@dataclass(frozen=True)
class Sampling:
    """How the target's latent is sampled; the network's own setting where one is not given.

    Args:
        num_steps: sampler steps; 0 for the network's default.
        eta, strength, requantize: as for ``LatentTranslator``.

    Raises:
        ValueError: for a negative number of steps, or a strength outside (0, 1].
    """

    num_steps: int = 0
    eta: float | None = None
    strength: float | None = None
    requantize: bool | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 0:
            raise ValueError(f"num_steps: expected 0 or more; found {self.num_steps}.")
        if self.strength is not None and not 0.0 < self.strength <= 1.0:
            raise ValueError(f"strength: expected a number in (0, 1]; found {self.strength}.")

    def given(self) -> dict[str, int | float | bool]:
        """The settings that are not the network's own, by name, as ``LatentTranslator.sample`` takes them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Translated(NamedTuple):
    """A result: ``image`` (B, 1, H, W, D), float32 in [-1, 1], outside the mask -1.

    ``cost`` is that of this image from the sources on, where costs are measured. ``uncertainty``, where it was asked
    for, is the absolute error that is to be expected at each voxel, of the image's shape and in its units, outside the
    mask 0.
    """

    image: Tensor
    cost: Cost | None = None
    uncertainty: Tensor | None = None


class Translation:
    """All that a network makes of the sources of a subject: each is encoded once, and brought once to a target's style.

    Nothing is computed before it is asked for, nothing of the network is changed, and no gradients are kept.

    Args:
        network: a ``LatentTranslator``, eager or scripted; or any callable ``(image, target) -> image``, such as an
            exported one, for :meth:`translate` alone.
        image: S ≥ 1 sources of each subject (B, S, H, W, D) in [-1, 1], in any order; H, W, D divisible by the
            network's ``spatial_divisor``.
        mask: foreground of the sources, boolean, broadcastable to (B, 1, H, W, D); the result is background outside it.
            It must come from the sources alone, as that of the target would give away the truth.
        amp: compute in bfloat16 where autocast does; ``"auto"`` where that is faster.
        measured: measure what each result costs.
        latents: where the latents of source and style are kept, by the modules that made them; given for networks that
            share such modules and translate the same image.
        keep_samples: keep each sample's image, for further means over some of the same samples.
    """

    def __init__(
        self,
        network: Any,
        image: Tensor,
        *,
        mask: Tensor | None = None,
        amp: bool | str = False,
        measured: bool = False,
        latents: Latents | None = None,
        keep_samples: bool = False,
    ) -> None:
        self.network = network
        self.image = image
        self.mask = mask
        self.staged = all(hasattr(network, step) for step in STEPS)
        self._bfloat16 = uses_bfloat16(amp, image.device)
        self._meter = Meter(network, image.device) if measured else None
        self._latents: Latents = {} if latents is None else latents
        self._samples: Latents | None = {} if keep_samples else None

    def reconstruct(self) -> Translated:
        """Each source's own latent decoded, (B, S, H, W, D): what the autoencoder can reach."""
        latent, encoding = self._encoded()
        image, decoding = self._run(lambda: self.network.decode(latent).float().view_as(self.image))
        return self._result(image, encoding.plus(decoding))

    def spade_decoded(self, target: int | Tensor) -> Translated:
        """The target-like latent decoded, without detail: stage 2 by itself; ``target`` as in :meth:`translate`."""
        (_, target_like), before = self._styled(self._index(target))
        image, decoding = self._run(lambda: self.network.decode_translated(target_like).float())
        return self._result(image, before.plus(decoding))

    def spade_only(self, target: int | Tensor) -> Translated:
        """The target-like latent rendered: the translation without diffusion; ``target`` as in :meth:`translate`."""
        index = self._index(target)
        (_, target_like), before = self._styled(index)
        image, rendering = self._run(lambda: self.network.render(target_like, self.image, index).float())
        return self._result(image, before.plus(rendering))

    def translate(
        self,
        target: int | Tensor,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        num_samples: int = 1,
        uncertainty: bool = False,
    ) -> Translated:
        """The whole translation: the mean over samples.

        Args:
            target: index of a modality, or one for each item (B,).
            sampling: settings of the sampler; the network's own where not given.
            seed: of the noise, which is the same for every item, target and device; the k-th sample's is ``seed + k``.
            num_samples: noise draws whose images are averaged.
            uncertainty: give the expected absolute error too, see :func:`require_error_map`; of several samples its
                mean, which the error of their mean image does not exceed.

        Raises:
            ValueError: for settings of the sampler where the network is a plain callable, whose sampler is fixed; for
                ``uncertainty`` of a network that does not know its errors.
        """
        if uncertainty:
            require_error_map(self.network)
        index, sampling = self._index(target), sampling or Sampling()
        total: Tensor | None = None
        cost = self._styled(index)[1] if self.staged else Cost()
        for k in range(num_samples):
            values, spent = self._sample(index, sampling, seed + k, uncertainty)
            total = values if total is None else total + values
            cost = cost.plus(spent)
        assert total is not None  # there is at least one sample
        mean = total / num_samples
        return self._result(mean[:, :1], cost, mean[:, 1:] if uncertainty else None)

    def _index(self, target: int | Tensor) -> Tensor:
        if isinstance(target, Tensor):
            return target
        return torch.full((self.image.shape[0],), target, dtype=torch.long, device=self.image.device)

    def _encoded(self) -> tuple[Tensor, Cost]:
        key = _module(self.network, "autoencoder")
        return self._once(self._latents, key, lambda: self.network.encode(self.image))

    def _styled(self, index: Tensor) -> tuple[tuple[Tensor, Tensor], Cost]:
        """Source latent and target-like latent, each fused, and what they cost from the sources on."""
        latent, encoding = self._encoded()
        names = ["autoencoder", "style_transfer"] + (["fusion"] if self.image.shape[1] > 1 else [])
        parts = [_module(self.network, name) for name in names]

        def compute() -> tuple[Tensor, Tensor]:
            return self.network.fuse(latent, self.network.transfer(latent, index), index)

        fused, transferring = self._once(self._latents, (*parts, *index.tolist()), compute)
        return fused, encoding.plus(transferring)

    def _sample(self, index: Tensor, sampling: Sampling, seed: int, uncertainty: bool) -> tuple[Tensor, Cost]:
        """Image (B, 1, H, W, D), with ``uncertainty`` its expected error as a second channel."""
        if not self.staged:
            return self._run(lambda: self._plain_sample(index, sampling, seed))
        latent, target_like = self._styled(index)[0]

        def compute() -> Tensor:
            noise = draw_noise(latent, seed)
            sampled = self.network.sample(latent, target_like, index, noise, **sampling.given())
            if not uncertainty:
                return self.network.render(sampled, self.image, index).float()
            image, logarithm = self.network.render_with_error(sampled, self.image, index)
            return torch.cat([image.float(), logarithm.float().exp()], dim=1)

        if self._samples is None:
            return self._run(compute)
        return self._once(self._samples, (sampling, seed, uncertainty, *index.tolist()), compute)

    def _plain_sample(self, index: Tensor, sampling: Sampling, seed: int) -> Tensor:
        if sampling != Sampling():
            raise ValueError(
                f"num_inference_steps: the network ({type(self.network).__name__}) has a fixed number of steps and a "
                f"fixed sampler; found {sampling}. Leave it out."
            )
        with _seeded(seed, self.image.device):
            return self.network(self.image, index).float()

    def _once(self, kept: Latents, key: Hashable, compute: Callable[[], Value]) -> tuple[Value, Cost]:
        if key not in kept:
            kept[key] = self._run(compute)
        return kept[key]

    def _run(self, compute: Callable[[], Value]) -> tuple[Value, Cost]:
        """The one way in which the network is run."""
        autocast = torch.autocast(self.image.device.type, dtype=torch.bfloat16, enabled=self._bfloat16)
        with torch.no_grad(), autocast, accelerate(self.network), self._meter() if self._meter else nullcontext():
            value = compute()
        return value, self._meter.last if self._meter else Cost()

    def _result(self, image: Tensor, cost: Cost, error: Tensor | None = None) -> Translated:
        image = image.clamp(-1.0, 1.0)
        if error is not None:  # the truth lies in [-1, 1], so no error can be larger
            error = torch.minimum(error, 1.0 + image.abs())
        if self.mask is not None:
            image = torch.where(self.mask, image, BACKGROUND)
            error = None if error is None else torch.where(self.mask, error, 0.0)
        return Translated(image, cost if self._meter else None, error)


def knows_errors(network: object) -> bool:
    """Whether ``network`` has a trained error map."""
    return _error_map(network) == "trained"


def _error_map(network: Any) -> str:
    return network.error_map() if hasattr(network, "error_map") else "none"


def require_error_map(network: object, *, wanted: bool | str = True) -> None:
    """Make sure that ``network`` knows what error to expect, where that is ``wanted``.

    Raises:
        ValueError: if it has no such head, or one that has never been trained.
    """
    if not as_bool("uncertainty", wanted):
        return
    found = _error_map(network)
    if found == "none":
        raise ValueError(
            "uncertainty: expected a network with a detail transfer that predicts errors; found none in "
            f"{type(network).__name__}. Leave it out."
        )
    if found != "trained":
        raise ValueError(
            "uncertainty: expected weights whose error map was trained; found untrained ones. Leave it out, or train "
            "stage 3 (train.json), with error_weight above 0."
        )


def _module(network: Callable, name: str) -> Hashable:
    """Identify the part ``name`` of a network, or the network where it has no such part."""
    return name, id(getattr(network, name, network))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators for what a network draws by itself, and leave them as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.random.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield
