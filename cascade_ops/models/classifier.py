"""SignalClassifier: any transformers backbone, a signal front end and a pooled head.

Front ends:

- ``patch``: a learned embedding of overlapping signal patches goes into ``inputs_embeds``;
- ``text``: the backbone's own token embedding; the physics descriptor is rendered as a prompt.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_outputs import SequenceClassifierOutput

from cascade_ops.errors import ConfigError

FRONT_ENDS = ("patch", "text")


class SignalClassifierConfig(PreTrainedConfig):
    """Configuration of a SignalClassifier.

    Args:
        backbone_config: config (or its dict) of a transformers model that takes ``inputs_embeds``.
        front_end: ``patch`` or ``text``.
        window: samples per window (patch front end).
        patch: samples from one token to the next; each patch spans two of them.
        filters, taps: number and length of the filter pairs whose energies are embedded.
        classes: class names, in label order.
        head_dropout: dropout before the classification head.
    """

    model_type = "signal_classifier"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  (transformers' own protocol)

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        front_end: str = "patch",
        window: int = 1024,
        patch: int = 32,
        filters: int = 64,
        taps: int = 64,
        classes: list[str] | tuple[str, ...] = ("0", "1"),
        head_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if front_end not in FRONT_ENDS:
            raise ConfigError(f"front_end: must be one of {', '.join(FRONT_ENDS)}, got {front_end!r}")
        if front_end == "patch" and (patch < 1 or window % patch):
            raise ConfigError(f"patch: must divide the window of {window} samples, got {patch}")
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = backbone_config
        self.front_end = front_end
        self.window = window
        self.patch = patch
        self.filters = filters
        self.taps = taps
        self.classes = list(classes)
        self.head_dropout = head_dropout
        super().__init__(
            id2label=dict(enumerate(self.classes)), **{k: v for k, v in kwargs.items() if k != "id2label"}
        )


class PatchFrontEnd(nn.Module):
    """A learned patch embedding: waveform plus filter-bank energies.

    Each token sees its own patch and half of each neighbour's. The energies come from pairs of learned
    filters in quadrature, ``log(Σ (a∗x)² + (b∗x)²)`` over the patch, which start as a windowed Fourier
    basis: a fault's resonance shows there whatever its phase, and so also at a load never seen.
    """

    HOP = 8
    FLOOR = 1e-3

    def __init__(self, hidden_size: int, patch: int, filters: int, taps: int) -> None:
        super().__init__()
        self.patch = patch
        self.hop = math.gcd(self.HOP, patch)
        self.waveform = nn.Conv1d(1, hidden_size, kernel_size=2 * patch, stride=patch, padding=patch // 2)
        self.bank = nn.Parameter(torch.empty(2 * filters, 1, taps))
        self.energy_norm = nn.LayerNorm(filters)
        self.energy = nn.Linear(filters, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def reset_parameters(self) -> None:
        """Filters start as cosine and sine at frequencies spread over the band, Hann-windowed."""
        filters, taps = self.bank.shape[0] // 2, self.bank.shape[2]
        frequency = (torch.arange(filters) + 0.5) / (2 * filters)  # cycles per sample
        phase = 2 * math.pi * frequency[:, None] * torch.arange(taps)
        window = torch.hann_window(taps)
        pair = torch.cat([phase.cos() * window, phase.sin() * window])
        initialization.copy_(self.bank, pair[:, None, :] / window.square().sum().sqrt())

    def forward(self, signal: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch tokens hidden"]:
        tokens = signal.shape[1] // self.patch
        waveform = self.waveform(signal[:, None, :])[..., :tokens]
        filtered = nn.functional.conv1d(
            signal[:, None, :], self.bank, stride=self.hop, padding=self.bank.shape[2] // 2
        )
        cosine, sine = filtered.chunk(2, dim=1)
        power = nn.functional.avg_pool1d(cosine.square() + sine.square(), self.patch // self.hop)[
            ..., :tokens
        ]
        energy = self.energy(self.energy_norm((power + self.FLOOR).log().transpose(1, 2)))
        embedded: Tensor = self.norm(waveform.transpose(1, 2) + energy)
        return embedded


class SignalClassifier(PreTrainedModel):
    """Front end → backbone → mean over tokens → linear head."""

    config_class = SignalClassifierConfig
    base_model_prefix = "backbone"
    main_input_name = "signal"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: SignalClassifierConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config) if backbone is None else backbone
        # from_config copies; surgery must reach the config that is saved.
        config.backbone_config = self.backbone.config
        hidden = self.backbone.config.hidden_size
        self.front_end = (
            PatchFrontEnd(hidden, config.patch, config.filters, config.taps)
            if config.front_end == "patch"
            else None
        )
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(hidden, len(config.classes))
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_backbone(cls, path: str, **config: Any) -> SignalClassifier:
        """Pretrained backbone (a folder or a hub name), fresh front end and head."""
        backbone = AutoModel.from_pretrained(path)
        return cls(SignalClassifierConfig(backbone_config=backbone.config, **config), backbone=backbone)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PatchFrontEnd):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Conv1d):
            nn.init.normal_(module.weight, std=0.02 if isinstance(module, nn.Linear) else 0.1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(
        self,
        signal: Float[Tensor, "batch samples"] | None = None,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        labels: Int[Tensor, " batch"] | None = None,
    ) -> SequenceClassifierOutput:
        """Logits (batch × classes) and, with labels, the mean cross-entropy."""
        if self.front_end is not None:
            hidden = self.backbone(inputs_embeds=self.front_end(signal)).last_hidden_state
        else:
            hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if attention_mask is None:
            pooled = hidden.mean(dim=1)
        else:
            weight = attention_mask.to(hidden.dtype)[..., None]
            pooled = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(SignalClassifierConfig.model_type, SignalClassifierConfig)
AutoModel.register(SignalClassifierConfig, SignalClassifier)
