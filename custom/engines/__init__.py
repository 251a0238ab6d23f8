"""Engines: training of the three stages, their validation and handlers, and the evaluation."""

from custom.engines.handlers import Checkpoints, ImagePanels, LossLog, StageProgress
from custom.engines.trainer import StageTrainer
from custom.engines.validation import StageInferer, prepare_translation

__all__ = [
    "Checkpoints",
    "ImagePanels",
    "LossLog",
    "StageInferer",
    "StageProgress",
    "StageTrainer",
    "prepare_translation",
]
