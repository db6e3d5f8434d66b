"""The four kinds of prunable unit, coarse to fine."""

from __future__ import annotations

import enum


class Granularity(enum.StrEnum):
    """What a unit is. See ``cascade_ops.gates`` for where each unit's gate multiplies."""

    LAYER = "layer"
    """One transformer block."""
    HEAD = "head"
    """One query head: its Q rows and O columns, and its K/V once no query head of the group is left."""
    KV_GROUP = "kv_group"
    """A key/value head with every query head that reads it. The same as HEAD in multi-head attention."""
    CHANNEL = "channel"
    """One intermediate channel of the feed-forward network, with its gate, up and down slices."""
