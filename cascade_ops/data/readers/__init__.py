"""Dataset readers. Importing this package registers each of them in ``DATASETS``.

A new dataset is one new file here that adds a ``DatasetEntry``, and a line below.
"""

from cascade_ops.data.readers import cwru, jnu, simulated, uestc, user
from cascade_ops.data.readers.base import DATASETS, DatasetEntry, RemoteFile

__all__ = ["DATASETS", "DatasetEntry", "RemoteFile", "cwru", "jnu", "simulated", "uestc", "user"]
