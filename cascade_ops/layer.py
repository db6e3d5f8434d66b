"""The anatomy of one block."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAnatomy:
    """One block.

    Attributes:
        source: the layer's index in the dense model.
        heads_per_kv: query heads of each KV group; (1, 1, …) is multi-head attention, (n,) is
            multi-query, unequal entries come from pruning query heads one by one.
        head_dim: width of a head.
        channels: intermediate size.
        params_fixed: parameters that no cut inside the block frees (norms, output biases).
        params_head, params_kv, params_channel: parameters of one query head (Q rows, O columns),
            one KV head (K and V rows), one channel (a row of each input projection, an output column).
    """

    source: int
    heads_per_kv: tuple[int, ...]
    head_dim: int
    channels: int
    params_fixed: int
    params_head: int
    params_kv: int
    params_channel: int

    @property
    def heads(self) -> int:
        return sum(self.heads_per_kv)

    @property
    def kv_heads(self) -> int:
        return len(self.heads_per_kv)

    @property
    def ragged(self) -> bool:
        """KV groups have different numbers of query heads."""
        return len(set(self.heads_per_kv)) > 1

    @property
    def n_rep(self) -> int:
        """Query heads per KV group; 1 where ragged, since then K/V are expanded by index."""
        return 1 if self.ragged else self.heads_per_kv[0]

    @property
    def kv_owner(self) -> tuple[int, ...]:
        """The KV group of each query head."""
        return tuple(group for group, n in enumerate(self.heads_per_kv) for _ in range(n))

    @property
    def params(self) -> int:
        return (
            self.params_fixed
            + self.heads * self.params_head
            + self.kv_heads * self.params_kv
            + self.channels * self.params_channel
        )

    def heads_of(self, groups: tuple[int, ...]) -> tuple[int, ...]:
        """The query heads of these KV groups."""
        chosen = set(groups)
        return tuple(head for head, group in enumerate(self.kv_owner) if group in chosen)

    def keep_heads(self, heads: tuple[int, ...]) -> LayerAnatomy:
        """This layer with only these query heads; a KV group without query heads goes too."""
        kept = [0] * self.kv_heads
        for head in heads:
            kept[self.kv_owner[head]] += 1
        return replace(self, heads_per_kv=tuple(n for n in kept if n))
