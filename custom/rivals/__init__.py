"""The comparison methods of the paper's Table 1: networks, objectives and what trains them, one file a method."""

from custom.rivals.cyclegan import CycleGAN, CycleGANObjective
from custom.rivals.dea_gan import DEaGAN, DEaGANObjective
from custom.rivals.nice_gan import NICEGAN, NICEGANObjective
from custom.rivals.pix2pix import Pix2Pix, Pix2PixObjective
from custom.rivals.reg_gan import RegGAN, RegGANObjective
from custom.rivals.res_vit import ResViT

__all__ = [
    "NICEGAN",
    "CycleGAN",
    "CycleGANObjective",
    "DEaGAN",
    "DEaGANObjective",
    "NICEGANObjective",
    "Pix2Pix",
    "Pix2PixObjective",
    "RegGAN",
    "RegGANObjective",
    "ResViT",
]
