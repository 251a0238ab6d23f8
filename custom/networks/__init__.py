"""Networks: the VQ-GAN, MS-SPADE, the conditional UNet and the translator made of them."""

from custom.networks.attention import Attention, SelfAttentionBlock, SpatialTransformerBlock
from custom.networks.conditional_unet import ConditionalUNet
from custom.networks.detail import DetailTransfer
from custom.networks.diffusion import NoiseSchedule, RectifiedFlow
from custom.networks.fusion import MeanFusion, SourceFusion
from custom.networks.identity_transfer import IdentityTransfer
from custom.networks.ms_spade import (
    MSSPADE,
    MSSPADEBlock,
    PreActivationBlock,
    ReleaseStyleTransfer,
    ResidualStyleTransfer,
    SourceSummary,
    StyleTransfer,
    SwitchableConv3d,
)
from custom.networks.no_denoiser import NoDenoiser
from custom.networks.quantizer import Quantized, VectorQuantizer
from custom.networks.translator import LatentTranslator
from custom.networks.vqgan import VQGAN, KLBottleneck
from custom.networks.wavelet import HaarTransform

__all__ = [
    "MSSPADE",
    "VQGAN",
    "Attention",
    "ConditionalUNet",
    "DetailTransfer",
    "HaarTransform",
    "IdentityTransfer",
    "KLBottleneck",
    "LatentTranslator",
    "MSSPADEBlock",
    "MeanFusion",
    "NoDenoiser",
    "NoiseSchedule",
    "PreActivationBlock",
    "Quantized",
    "RectifiedFlow",
    "ReleaseStyleTransfer",
    "ResidualStyleTransfer",
    "SelfAttentionBlock",
    "SourceFusion",
    "SourceSummary",
    "SpatialTransformerBlock",
    "StyleTransfer",
    "SwitchableConv3d",
    "VectorQuantizer",
]
