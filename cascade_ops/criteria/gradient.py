"""First- and second-order loss change from gate gradients.

With the loss of sample n expanded at open gates, closing gate g changes it by −∂ℓₙ/∂g to first
order. Gradients flow through activations only, and coupled weights need no bookkeeping: a unit has
one gate.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from cascade_ops.criteria.base import LayerView, criterion
from cascade_ops.statistics import ABS_GRADIENT, SQUARED_GRADIENT


@criterion(
    "taylor",
    needs=("gate_gradients",),
    reference="Molchanov et al. 2019, arXiv 1906.10771; Michel et al. 2019, arXiv 1905.10650, eq. 2",
)
def taylor(view: LayerView) -> Float[Tensor, " units"]:
    """``Σₙ |∂ℓₙ/∂g|`` / N."""
    return view.sum_of(ABS_GRADIENT) / view.statistics.samples


@criterion("fisher", needs=("gate_gradients",), reference="Theis et al. 2018, arXiv 1801.05787, eq. 7")
def fisher(view: LayerView) -> Float[Tensor, " units"]:
    """``½ Σₙ (∂ℓₙ/∂g)²`` / N: the second-order loss change under the empirical Fisher information."""
    return 0.5 * view.sum_of(SQUARED_GRADIENT) / view.statistics.samples
