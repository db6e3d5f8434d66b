"""What a load test plans, records and concludes; pure, and free of torch: the generator is ``serve.bench``."""

from __future__ import annotations

from cascade_ops.loadtest.arrivals import poisson_arrivals as poisson_arrivals
from cascade_ops.loadtest.compare import Change as Change
from cascade_ops.loadtest.compare import Comparison as Comparison
from cascade_ops.loadtest.compare import compare as compare
from cascade_ops.loadtest.figures import Figure as Figure
from cascade_ops.loadtest.figures import figures_of as figures_of
from cascade_ops.loadtest.figures import ratios_of as ratios_of
from cascade_ops.loadtest.ratios import Ratio as Ratio
from cascade_ops.loadtest.ratios import paired_ratio as paired_ratio
from cascade_ops.loadtest.ratios import unpaired_ratio as unpaired_ratio
from cascade_ops.loadtest.records import Mode as Mode
from cascade_ops.loadtest.records import Request as Request
from cascade_ops.loadtest.records import Segment as Segment
from cascade_ops.loadtest.results import BENCH_SCHEMA as BENCH_SCHEMA
from cascade_ops.loadtest.results import Bench as Bench
from cascade_ops.loadtest.summary import Summary as Summary
from cascade_ops.loadtest.summary import samples_needed as samples_needed
from cascade_ops.loadtest.summary import summarise as summarise
