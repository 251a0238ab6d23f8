"""Signal equations of the phantom's contrasts: relaxation times of brain tissue and the sequences that show them.

A voxel's signal depends on proton density PD (relative to water), longitudinal relaxation T1 and transverse relaxation
T2 of its tissue, and on the repetition, echo and inversion times TR, TE, TI of the sequence (all times in ms)::

    spin echo            S = PD · (1 − exp(−TR/T1)) · exp(−TE/T2)                                      (1)
    inversion recovery   S = PD · |1 − 2·exp(−TI/T1) + exp(−TR/T1)| · exp(−TE/T2)                      (2)

A contrast agent at concentration C shortens T1: 1/T1' = 1/T1 + r1·C                                   (3)

Sources: Bernstein, King and Zhou, Handbook of MRI Pulse Sequences (2004), for (1) and (2); Rohrer et al., Invest.
Radiol. 40:715 (2005), for the relaxivity r1 of (3), 3 to 5 per mM per s for common agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from custom.utils.modalities import canonical

RELAXIVITY = 4.5  # r1 of (3), per mM per s


class Tissue(NamedTuple):
    """T1 and T2 in ms at 1.5 T and 3 T, proton density relative to water, agent taken up in mM.

    ``texture`` is the relative spread of T1 and T2 inside the tissue, ``spread`` that of T2 from subject to subject.
    """

    t1: tuple[float, float]
    t2: tuple[float, float]
    pd: float
    uptake: float
    texture: float
    spread: float = 0.05


# Healthy tissue: middle of the published ranges. T1, T2: Stanisz et al., MRM 54:507 (2005), 1.5 and 3 T; Rooney et al.,
# MRM 57:308 (2007), T1 of grey and white matter and CSF at 1.5 T and above; Wansapura et al., JMRI 9:531 (1999), 3 T;
# Bojorquez et al., MRI 35:69 (2017), review at 3 T. PD: Tofts, Quantitative MRI of the Brain (2003).
# Fluid in sulci loses signal to pulsation and to vessels and membranes in it: a shorter effective T2.
# Oedema and tumour: long T1 and T2 between tissue and fluid; chosen so that lesions look as in clinical scans.
TISSUES: dict[str, Tissue] = {
    "csf": Tissue((4100.0, 4300.0), (1900.0, 1700.0), 1.00, 0.00, 0.02),
    "sulcal": Tissue((4000.0, 4200.0), (330.0, 330.0), 1.00, 0.00, 0.03, 0.35),
    "grey": Tissue((1120.0, 1420.0), (90.0, 86.0), 0.82, 0.02, 0.035),
    "deep": Tissue((960.0, 1200.0), (82.0, 76.0), 0.80, 0.02, 0.030),
    "iron": Tissue((820.0, 1020.0), (72.0, 62.0), 0.77, 0.02, 0.030),
    "white": Tissue((690.0, 880.0), (77.0, 73.0), 0.70, 0.01, 0.040),
    "oedema": Tissue((1350.0, 1600.0), (155.0, 145.0), 0.86, 0.01, 0.14),
    "enhancing": Tissue((1250.0, 1500.0), (125.0, 115.0), 0.84, 0.55, 0.15),
    "core": Tissue((1500.0, 1750.0), (165.0, 155.0), 0.87, 0.03, 0.16),
    "necrosis": Tissue((2100.0, 2300.0), (260.0, 240.0), 0.93, 0.02, 0.15),
    "plaque": Tissue((1250.0, 1450.0), (140.0, 130.0), 0.84, 0.01, 0.08),
    "blood": Tissue((1500.0, 1750.0), (170.0, 110.0), 0.75, 0.80, 0.10),
}


class Protocol(NamedTuple):
    """Ranges (ms) that a scan's repetition, echo and inversion times are drawn from; ``ti`` None is spin echo."""

    tr: tuple[float, float]
    te: tuple[float, float]
    ti: tuple[float, float] | None = None
    agent: bool = False


# One line a way of acquiring a contrast: T1 with strong or weak contrast of grey and white matter. FLAIR's inversion
# time here is nominal: ``draw_scan`` sets it to null the fluid.
SEQUENCES: dict[str, tuple[Protocol, ...]] = {
    "t1": (Protocol((1900, 2300), (3, 6), (820, 960)), Protocol((1900, 2300), (4, 9), (920, 1030))),
    "t1ce": (
        Protocol((1900, 2300), (3, 6), (860, 1000), agent=True),
        Protocol((1900, 2300), (4, 9), (940, 1050), agent=True),
    ),
    "t2": (Protocol((5500, 8000), (98, 122)),),
    "flair": (Protocol((8500, 10500), (95, 130), (2350, 2600)),),
    "pd": (Protocol((2200, 3500), (14, 28)),),
}


class Scan(NamedTuple):
    """Sequence of one scan as drawn for one subject; times in ms."""

    tr: float
    te: float
    ti: float | None
    agent: bool


def check_modalities(modalities: Sequence[str]) -> tuple[str, ...]:
    """Canonical names of the modalities.

    Raises:
        ValueError: for an empty list, a repeated modality, or one that has no signal equation here.
    """
    names = tuple(canonical(m) for m in ([modalities] if isinstance(modalities, str) else modalities))
    unknown = [m for m in names if m not in SEQUENCES]
    if unknown or not names or len(set(names)) != len(names):
        found = ", ".join(map(repr, unknown or names)) or "none"
        raise ValueError(
            f"modalities: expected some of {', '.join(SEQUENCES)}, each once; found {found}. "
            "The phantom can only make contrasts that it has a signal equation for."
        )
    return names


def draw_relaxation(rng: np.random.Generator, field: int) -> dict[str, Tissue]:
    """Tissues of one subject: T1 (4 %), T2 (``spread``), PD (1.5 %) and uptake (25 %) spread around the values above.

    Args:
        rng: source of the draw.
        field: 0 for 1.5 T, 1 for 3 T. The chosen value fills both places of ``t1`` and ``t2``.
    """
    drawn = {}
    for name, tissue in TISSUES.items():
        a, b, c, d = rng.normal(size=4).clip(-2.5, 2.5)
        t1, t2 = tissue.t1[field] * np.exp(0.04 * a), tissue.t2[field] * np.exp(tissue.spread * b)
        pd, uptake = tissue.pd * (1 + 0.015 * c), tissue.uptake * np.exp(0.25 * d)
        drawn[name] = Tissue((t1, t1), (t2, t2), pd, uptake, tissue.texture, tissue.spread)
    return drawn


def draw_scan(modality: str, rng: np.random.Generator, relaxation: dict[str, Tissue]) -> Scan:
    """Draw one scan's sequence. FLAIR's TI is set to null the subject's CSF, as the scanner's protocol does.

    Args:
        modality: canonical name, a key of ``SEQUENCES``.
        rng: source of the draw.
        relaxation: the subject's tissues, from ``draw_relaxation``.
    """
    choices = SEQUENCES[modality]
    chosen = choices[rng.integers(len(choices))]
    tr, te = rng.uniform(*chosen.tr), rng.uniform(*chosen.te)
    ti = None if chosen.ti is None else rng.uniform(*chosen.ti)
    if modality == "flair":
        t1 = relaxation["csf"].t1[0]
        null = t1 * (np.log(2.0) - np.log1p(np.exp(-tr / t1)))
        ti = null * rng.uniform(0.975, 1.025)
    return Scan(tr, te, ti, chosen.agent)


def longitudinal(scan: Scan, t1: np.ndarray, uptake: float = 0.0) -> np.ndarray:
    """T1-dependent factor of (1) or (2), T1 (ms) shortened by (3) when the scan uses a contrast agent."""
    if scan.agent and uptake > 0:
        t1 = 1.0 / (1.0 / t1 + 1e-3 * RELAXIVITY * uptake)
    if scan.ti is None:
        return 1.0 - np.exp(-scan.tr / t1)
    return np.abs(1.0 - 2.0 * np.exp(-scan.ti / t1) + np.exp(-scan.tr / t1))


def transverse(scan: Scan, t2: np.ndarray) -> np.ndarray:
    """T2-dependent factor of (1) and (2), exp(−TE/T2), T2 in ms."""
    return np.exp(-scan.te / t2)
