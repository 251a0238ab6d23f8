"""The inferer that evaluation, the command line and MONAI Label share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

from custom.compat import in_label_server
from custom.data.foreground import BACKGROUND
from custom.inference.memory import check_memory
from custom.inference.translation import Sampling, Translation
from custom.networks.fast import accelerate
from custom.networks.translator import RANGE
from custom.networks.weights import read_card
from custom.utils.arguments import as_bool, whole_number
from custom.utils.errors import telling_label_clients
from custom.utils.identity import weights_digest
from custom.utils.modalities import BRATS_MODALITIES, MISSING, canonical, target_indices
from custom.utils.precision import amp_choice

__all__ = ["MAX_SAMPLES", "MAX_STEPS", "METHOD", "TranslationInferer"]

MAX_SAMPLES = 1000  # far more than improve a mean
MAX_STEPS = 1000  # those that the network is trained with
MAX_SEED = 2**32 - 1
METHOD = "Method"  # in a record: the name of a comparison method


class TranslationInferer(Inferer):
    """Translate sources into one target modality or several; each source is encoded once for all of them.

    The noise comes from ``seed`` alone and is the same for every item of a batch and every target, so that a volume's
    translation does not depend on the batch, the other targets, the device or the order of files.

    Args:
        targets: one modality or several, aliases allowed; ``missing`` where each call names its own.
        modalities: the vocabulary that the weights were trained with, in order.
        seed: of the noise.
        num_samples: noise draws whose images are averaged.
        num_inference_steps: sampler steps; 0 or None for the network's default.
        amp: run the network under bfloat16 autocast; ``"auto"`` where the device computes faster in it. The result is
            float32 in any case.
        uncertainty: give the error map of each translation, too.

    Raises:
        ValueError: for an unknown target, or for samples, steps or a seed that are no whole number within bounds. In
            the server of MONAI Label the call raises instead, an error whose text reaches the client: MONAI wraps what
            constructors raise. There a list of targets is refused too, since an answer is one volume.
    """

    # a translation does not depend on what else is asked for
    not_in_identity = ("targets", "uncertainty", "fault", "network", "weights", "method")

    def __init__(
        self,
        targets: str | Sequence[str],
        modalities: Sequence[str] = BRATS_MODALITIES,
        *,
        seed: int = 0,
        num_samples: int = 1,
        num_inference_steps: int | None = 0,
        amp: bool | str = False,
        uncertainty: bool | str = False,
    ) -> None:
        self.modalities = tuple(modalities)
        self.amp = amp_choice(amp)
        self.fault: ValueError | None = None
        self.network: Any = None  # of the last call
        self.weights: str | None = None
        self.method: str | None = None  # of comparison, whose weights these are
        try:
            if in_label_server() and not isinstance(targets, str):
                raise ValueError(f"target: expected one modality; found {targets!r}. Ask for one after the other.")
            self.targets = [] if targets == MISSING else self._canonical(targets)
            self.uncertainty = as_bool("uncertainty", uncertainty)
            self.seed = whole_number("seed", seed, smallest=0, largest=MAX_SEED)
            self.num_samples = whole_number("num_samples", num_samples, smallest=1, largest=MAX_SAMPLES)
            steps = 0 if num_inference_steps in (None, "") else num_inference_steps
            self.num_steps = whole_number("num_inference_steps", steps, smallest=0, largest=MAX_STEPS)
        except ValueError as error:
            if not in_label_server():
                raise
            self.fault = error

    def _canonical(self, targets: str | Sequence[str]) -> list[str]:
        return [canonical(self.modalities[i]) for i in target_indices(targets, self.modalities)]

    @telling_label_clients
    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        *args: Any,
        targets: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Translate a batch.

        Args:
            inputs: S ≥ 1 sources of each subject (B, S, H, W, D) in [-1, 1], in any order; H, W, D divisible by the
                network's ``spatial_divisor``.
            network: a ``LatentTranslator``, or any callable ``(image, target) -> image``, such as an exported one.
            args: not used.
            targets: of this call; those of the inferer where not given.
            kwargs: not used.

        Returns:
            (B, K, H, W, D) float32 in [-1, 1], one channel a target in their order, with the metadata of ``inputs``.
            With ``uncertainty`` (B, 2 K, H, W, D): behind the translations their expected absolute errors, shifted by
            -1, so that they lie in the range of an image, as do errors brought to its scale.

        Raises:
            ValueError: for ``uncertainty`` of a network that does not know its errors, for more sources than fit into
                memory, if the network has another number of modalities, or if steps were asked for and it is a plain
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
        wanted = self.targets if targets is None else self._canonical(targets)
        if not wanted:
            raise ValueError(f"targets: expected contrasts; found {MISSING}, of a scan whose contrasts are not known.")
        image = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        check_memory(image)
        self._remember(network)
        translation = Translation(network, image, amp=self.amp)
        # rendered one after the other, which bounds the memory of the full resolution
        with accelerate(network):
            found = [
                translation.translate(
                    index,
                    Sampling(self.num_steps),
                    seed=self.seed,
                    num_samples=self.num_samples,
                    uncertainty=self.uncertainty,
                )
                for index in target_indices(wanted, self.modalities)
            ]
        errors = [result.uncertainty + BACKGROUND for result in found if result.uncertainty is not None]
        channels = torch.cat([*(result.image for result in found), *errors], dim=1)
        return convert_to_dst_type(channels, dst=inputs, dtype=torch.float32)[0]

    def used(self) -> dict[str, Any]:
        """What the last call computed with, for the record of its translations; see ``provenance.translation_record``.

        Steps are those of the sampler, by the network's default where none were asked for; weights are None of a
        callable that has none. A method of comparison, which its weights name, samples nothing: its steps are None.
        """
        steps = self.num_steps or getattr(self.network, "num_inference_steps", None)
        found = {"Seed": self.seed, "Steps": steps, "Samples": self.num_samples, "WeightsSHA": self.weights}
        return found if self.method is None else {**found, "Steps": None, METHOD: self.method}

    def _remember(self, network: Any) -> None:
        if network is not self.network:
            state = network.state_dict() if hasattr(network, "state_dict") else {}
            computing = {name: tensor for name, tensor in state.items() if name != RANGE}
            self.network, self.weights = network, weights_digest(computing) if computing else None
            card = read_card(state)
            self.method = None if card is None else str(card["method"])
