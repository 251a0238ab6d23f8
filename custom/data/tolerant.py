"""A data set of which one faulty item does not stop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monai.data import Dataset

from custom.data.names import PROVENANCE_KEY
from custom.utils.errors import user_message

__all__ = ["FAULT_KEY", "TolerantDataset"]

logger = logging.getLogger(__name__)

FAULT_KEY = "fault"


class TolerantDataset(Dataset):
    """A ``Dataset`` that hands on what is wrong with an item, ``{"fault": message}``, instead of raising.

    So a faulty file among many costs its own result alone; ``custom.inference.evaluator.FileEvaluator`` reports.

    Args:
        data: items ``{"image": path}``, or of one subject's sources their list; one that has a fault already is handed
            on with it.
        transform: reads and prepares them.
        provenance: gives what is known of a source as text, which then is in the image's metadata.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[..., Any] | None,
        provenance: Callable[[Any], str] | None = None,
    ) -> None:
        super().__init__(data, transform)
        self.provenance = provenance

    def _transform(self, index: int) -> Mapping[str, Any]:
        if FAULT_KEY in self.data[index]:
            return {FAULT_KEY: self.data[index][FAULT_KEY]}
        try:
            item = super()._transform(index)
            if self.provenance is not None:
                item["image"].meta[PROVENANCE_KEY] = self.provenance(self.data[index]["image"])
            return item
        except Exception as error:
            logger.debug("reading %s failed", self.data[index], exc_info=True)
            image = self.data[index].get("image", self.data[index])
            named = ", ".join(image) if isinstance(image, list) else str(image)
            return {FAULT_KEY: user_message(error, default=named)}
