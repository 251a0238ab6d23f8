"""Engines: training of the three stages, their validation and handlers, and the evaluation."""

from custom.engines.checkpoints import Checkpoints, load_stage, require_stage
from custom.engines.handlers import ImagePanels, LossLog, MovingAverage, StageProgress, as_handler
from custom.engines.trainer import StageTrainer
from custom.engines.validation import StageInferer, prepare_translation

__all__ = [
    "Checkpoints",
    "ImagePanels",
    "LossLog",
    "MovingAverage",
    "StageInferer",
    "StageProgress",
    "StageTrainer",
    "as_handler",
    "load_stage",
    "prepare_translation",
    "require_stage",
]
