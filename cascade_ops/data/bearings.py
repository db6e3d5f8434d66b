"""Bearing geometry and the characteristic frequencies that follow from it.

With n rolling elements of diameter d on a pitch circle of diameter D, contact angle φ, r = (d/D) cos φ
and the outer ring at rest, as multiples ("orders") of the shaft rate:

    BPFO = n/2 (1 − r)          a ball passes a point of the outer race
    BPFI = n/2 (1 + r)          a ball passes a point of the inner race
    BSF  = D/(2d) (1 − r²)      a ball turns once about its own axis
    FTF  = 1/2 (1 − r)          the cage turns once

BSF is the *spin* rate. A spot on a ball strikes both races in each turn, so a ball fault shows at 2×BSF
(4.71 for the 6205), the figure that some tables print as "rolling element".

Source: Randall and Antoni, "Rolling element bearing diagnostics - a tutorial", MSSP 25 (2011), section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cascade_ops.data.types import Bearing

SKF_6205 = Bearing(name="SKF 6205-2RS JEM", balls=9, ball_diameter=0.3126, pitch_diameter=1.537)
"""CWRU's drive-end bearing (inches). Orders: BPFO 3.5848, BPFI 5.4152, BSF 2.357, FTF 0.3983."""

UCPH_20X = Bearing(
    name="UCPH 20x (approximate: ball count and d/D inferred from measured orders)",
    balls=8,
    ball_diameter=0.22,
    pitch_diameter=1.0,
)
"""UESTC's bearing, of unknown size. Measured orders: BPFO 2.96-3.24, BPFI 4.80-4.94; here 3.12 and 4.88."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CharacteristicFrequencies:
    """BPFO, BPFI, BSF (spin; faults show at twice it) and FTF, all in orders or all in hertz."""

    bpfo: float
    bpfi: float
    bsf: float
    ftf: float

    def in_hz(self, rpm: float) -> CharacteristicFrequencies:
        """Orders to hertz at a shaft speed in revolutions per minute."""
        shaft = rpm / 60.0
        return CharacteristicFrequencies(
            bpfo=self.bpfo * shaft, bpfi=self.bpfi * shaft, bsf=self.bsf * shaft, ftf=self.ftf * shaft
        )

    def fault_lines(self) -> dict[str, float]:
        """Where each fault type shows in an envelope spectrum: ``{"OR": BPFO, "IR": BPFI, "B": 2·BSF}``."""
        return {"OR": self.bpfo, "IR": self.bpfi, "B": 2.0 * self.bsf}


def orders(bearing: Bearing) -> CharacteristicFrequencies:
    """Characteristic frequencies in orders of the shaft rate (the formulas above)."""
    ratio = bearing.ball_diameter / bearing.pitch_diameter * math.cos(math.radians(bearing.contact_angle_deg))
    return CharacteristicFrequencies(
        bpfo=bearing.balls / 2 * (1 - ratio),
        bpfi=bearing.balls / 2 * (1 + ratio),
        bsf=bearing.pitch_diameter / (2 * bearing.ball_diameter) * (1 - ratio**2),
        ftf=(1 - ratio) / 2,
    )


def frequencies(bearing: Bearing, rpm: float) -> CharacteristicFrequencies:
    """Characteristic frequencies in hertz at a shaft speed in revolutions per minute."""
    return orders(bearing).in_hz(rpm)
