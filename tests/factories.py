"""Tiny models with random weights, calibration batches and plans that differ from layer to layer.

Every weight, bias and norm is perturbed, so that nothing holds by accident of initialisation (unit norms,
zero biases). The same arguments give the same bits.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from cascade_ops.anatomy import ModelAnatomy
from cascade_ops.granularity import Granularity
from cascade_ops.models.classifier import SignalClassifier, SignalClassifierConfig
from cascade_ops.plan import PruningPlan
from cascade_ops.tasks import TaskData

VOCABULARY = 40
LAYERS = 3
HEAD_DIM = 4
WINDOW, PATCH = 48, 8

N_REP = {
    "n_rep=1": (4, 4),
    "n_rep=2": (6, 3),
    "n_rep=3": (6, 2),
    "n_rep=4": (8, 2),
    "n_rep=7": (14, 2),
    "mqa": (4, 1),
}
"""Query heads and KV heads."""

LLAMA_GROUP = {"arcee": "Arcee", "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


@dataclass(frozen=True, slots=True)
class Case:
    """One architecture: how it is built, what it is, and what may not be cut of it."""

    model_type: str
    build: Callable[..., PreTrainedModel]
    generates: bool = True
    refused: tuple[Granularity, ...] = ()

    @property
    def cuts(self) -> tuple[Granularity, ...]:
        return tuple(granularity for granularity in Granularity if granularity not in self.refused)


def perturbed(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Noise on every parameter: matrices become N(0, 0.2²), vectors move by N(0, 0.2²).

    Larger matrices make so tiny a model amplify rounding until float32 itself exceeds 1e-5.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.2 * noise)
    return model.eval()


def _model(class_name: str, config: Any, seed: int) -> PreTrainedModel:
    config.architectures = [class_name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = getattr(transformers, class_name)(config)
    return perturbed(model, seed)


def gpt2(*, seed: int = 0, head: str = "GPT2LMHeadModel", **config: Any) -> PreTrainedModel:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "n_positions": 32,
        "n_embd": 16,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_inner": 20,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": None,
    }
    return _model(head, transformers.GPT2Config(**settings | config), seed)


def llama_like(
    model_type: str = "llama",
    *,
    heads: int = 6,
    kv_heads: int = 2,
    seed: int = 0,
    head: str = "ForCausalLM",
    **config: Any,
) -> PreTrainedModel:
    """Llama, Mistral, Qwen2 or Qwen3 with ``heads`` query heads of width 4."""
    name = LLAMA_GROUP[model_type]
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HEAD_DIM * heads,
        "intermediate_size": 18,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 32,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return _model(f"{name}{head}", getattr(transformers, f"{name}Config")(**settings | config), seed)


def gpt_neox(*, seed: int = 0, head: str = "GPTNeoXForCausalLM", **config: Any) -> PreTrainedModel:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 20,
        "max_position_embeddings": 32,
        "bos_token_id": 0,
        "eos_token_id": None,
    }
    return _model(head, transformers.GPTNeoXConfig(**settings | config), seed)


def opt(*, seed: int = 0, head: str = "OPTForCausalLM", **config: Any) -> PreTrainedModel:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "ffn_dim": 20,
        "max_position_embeddings": 32,
        "dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 1,
    }
    return _model(head, transformers.OPTConfig(**settings | config), seed)


def bert(*, seed: int = 0, head: str = "BertForMaskedLM", **config: Any) -> PreTrainedModel:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 20,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return _model(head, transformers.BertConfig(**settings | config), seed)


def tiny(class_name: str, *, seed: int = 0, layers: int = LAYERS, **config: Any) -> PreTrainedModel:
    """Any transformers model: hidden size 16, four heads, 20 channels, by the names its config has. Settings that
    are lists with an entry for each of three layers go on from the start in further ones."""
    config_class = getattr(transformers, class_name).config_class
    known = {
        **dict.fromkeys(("hidden_size", "n_embd", "dim"), 16),
        **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), layers),
        **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
        **dict.fromkeys(("intermediate_size", "n_inner", "hidden_dim", "ffn_hidden_size"), 20),
        **dict.fromkeys(("max_position_embeddings", "n_positions"), 32),
        "vocab_size": VOCABULARY,
        "head_dim": HEAD_DIM,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 1,
    }
    fields = {field.name for field in dataclasses.fields(config_class)}
    aliases = set(config_class.attribute_map)
    settings = {name: value for name, value in known.items() if name in fields - aliases}
    for name, value in config.items():
        if isinstance(value, list):
            config[name] = [value[index % LAYERS] for index in range(layers)]
    drops = {name: 0.0 for name in fields if name.endswith(("dropout", "_pdrop", "dropout_prob"))}
    return _model(class_name, config_class(**drops | settings | config), seed)


def classifier(
    backbone: Callable[..., PreTrainedModel], *, seed: int = 0, front_end: str = "patch", **config: Any
) -> SignalClassifier:
    """A SignalClassifier of three classes around a backbone without a language-model head."""
    inner = backbone(seed=seed, **config).config
    inner.architectures = None
    outer = SignalClassifierConfig(
        backbone_config=inner,
        front_end=front_end,
        window=WINDOW,
        patch=PATCH,
        filters=4,
        taps=16,
        classes=["N", "IR", "OR"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SignalClassifier(outer)
    perturbed(model, seed)
    return model


ATTENTION = (Granularity.HEAD, Granularity.KV_GROUP)
FALCON: dict[str, Any] = {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": 4}
HALF_ROTARY = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
NEO = [[["local"], 1], [["global"], 1], [["local"], 1]]
GEMMA = ["sliding_attention", "full_attention", "sliding_attention"]

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("GemmaForCausalLM", {"num_key_value_heads": 1}),
    "gemma2": ("Gemma2ForCausalLM", {"num_key_value_heads": 2, "sliding_window": 4}),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {"num_key_value_heads": 2, "sliding_window": 4, "layer_types": GEMMA},
    ),
    "granite": ("GraniteForCausalLM", {"num_key_value_heads": 2, "residual_multiplier": 0.5}),
    "olmo": ("OlmoForCausalLM", {"clip_qkv": 0.5}),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "olmo3": ("Olmo3ForCausalLM", {"num_key_value_heads": 2, "sliding_window": 4}),
    "smollm3": ("SmolLM3ForCausalLM", {"num_key_value_heads": 2, "no_rope_layers": [1, 0, 1]}),
    "cohere": ("CohereForCausalLM", {"num_key_value_heads": 2}),
    "cohere-qk-norm": ("CohereForCausalLM", {"num_key_value_heads": 2, "use_qk_norm": True}),
    "cohere2": ("Cohere2ForCausalLM", {"num_key_value_heads": 2, "sliding_window": 4}),
    "stablelm": ("StableLmForCausalLM", {"num_key_value_heads": 4, "rope_parameters": HALF_ROTARY}),
    "stablelm-qk-norm": (
        "StableLmForCausalLM",
        {
            "num_key_value_heads": 2,
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "rope_parameters": HALF_ROTARY,
        },
    ),
    "starcoder2": ("Starcoder2ForCausalLM", {"num_key_value_heads": 2, "sliding_window": 4}),
    "phi": ("PhiForCausalLM", {}),
    "phi3": ("Phi3ForCausalLM", {"num_key_value_heads": 2, "sliding_window": 4}),
    "glm": ("GlmForCausalLM", {"num_key_value_heads": 2}),
    "glm4": ("Glm4ForCausalLM", {"num_key_value_heads": 2}),
    "gptj": ("GPTJForCausalLM", {"rotary_dim": 2}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {"attention_types": NEO, "window_size": 4},
    ),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", {}),
    "gpt_bigcode-mha": ("GPTBigCodeForCausalLM", {"multi_query": False}),
    "falcon-mqa": ("FalconForCausalLM", FALCON | {"multi_query": True}),
    "falcon-mha": ("FalconForCausalLM", FALCON | {"bias": True, "parallel_attn": False}),
    "falcon-gqa": ("FalconForCausalLM", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("FalconForCausalLM", FALCON | {"alibi": True}),
    "bloom": ("BloomForCausalLM", {}),
    "roberta": ("RobertaForMaskedLM", {}),
    "distilbert": ("DistilBertForMaskedLM", {}),
    "vit": ("ViTForImageClassification", {"image_size": 16, "patch_size": 4, "num_labels": 3}),
}
"""Model class and what its config has beside ``tiny``'s settings."""

REFUSED = {
    "olmo2": ATTENTION,
    "olmo3": ATTENTION,
    "bloom": ATTENTION,
    "falcon-alibi": ATTENTION,
    "falcon-gqa": (Granularity.HEAD,),
}


def _tiny_cases() -> dict[str, Case]:
    return {
        name: Case(
            getattr(transformers, class_name).config_class.model_type,
            lambda class_name=class_name, settings=settings, **kw: tiny(class_name, **settings | kw),
            generates=class_name.endswith("CausalLM"),
            refused=REFUSED.get(name, ()),
        )
        for name, (class_name, settings) in TINY.items()
    }


def _llama_cases() -> dict[str, Case]:
    def case(model_type: str, heads: int, kv_heads: int) -> Case:
        return Case(
            model_type,
            lambda **kw: llama_like(model_type, **{"heads": heads, "kv_heads": kv_heads} | kw),
        )

    return {
        f"{model_type}-{name}": case(model_type, heads, kv_heads)
        for model_type in LLAMA_GROUP
        for name, (heads, kv_heads) in N_REP.items()
    }


CASES: dict[str, Case] = {
    "gpt2": Case("gpt2", gpt2),
    "gpt2-untied": Case("gpt2", lambda **kw: gpt2(tie_word_embeddings=False, **kw)),
    "gpt2-inverse-layer-scale": Case("gpt2", lambda **kw: gpt2(scale_attn_by_inverse_layer_idx=True, **kw)),
    **_llama_cases(),
    "llama-biased": Case("llama", lambda **kw: llama_like("llama", attention_bias=True, mlp_bias=True, **kw)),
    "qwen2-tied": Case("qwen2", lambda **kw: llama_like("qwen2", tie_word_embeddings=True, **kw)),
    "qwen2-sliding": Case(
        "qwen2",
        lambda **kw: llama_like(
            "qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1, **kw
        ),
    ),
    "mistral-sliding": Case("mistral", lambda **kw: llama_like("mistral", sliding_window=4, **kw)),
    "gpt_neox": Case("gpt_neox", gpt_neox),
    "gpt_neox-sequential": Case("gpt_neox", lambda **kw: gpt_neox(use_parallel_residual=False, **kw)),
    "opt": Case("opt", opt),
    "opt-post-norm": Case("opt", lambda **kw: opt(do_layer_norm_before=False, **kw)),
    "bert": Case("bert", bert, generates=False),
    **_tiny_cases(),
    "classifier-gpt2": Case("gpt2", lambda **kw: classifier(gpt2, **kw), generates=False),
    "classifier-llama": Case("llama", lambda **kw: classifier(llama_like, **kw), generates=False),
    "classifier-bert": Case("bert", lambda **kw: classifier(bert, **kw), generates=False),
}
"""Every architecture that the contracts run over."""

REPRESENTATIVES = (
    "gpt2",
    "arcee-n_rep=2",
    "gpt2-untied",
    "gpt2-inverse-layer-scale",
    "llama-n_rep=3",
    "llama-biased",
    "mistral-sliding",
    "qwen2-tied",
    "qwen2-sliding",
    "qwen3-n_rep=2",
    "qwen3-mqa",
    "gpt_neox",
    "gpt_neox-sequential",
    "opt",
    "opt-post-norm",
    "bert",
    *TINY,
    "classifier-gpt2",
    "classifier-llama",
    "classifier-bert",
)
"""One case per kind of code path, for the contracts that cost more than a forward."""


def inputs_for(
    model: PreTrainedModel, *, samples: int = 3, tokens: int = 9, seed: int = 0
) -> dict[str, Tensor]:
    """A batch that the model's forward takes, without labels."""
    generator = torch.Generator().manual_seed(1000 + seed)
    if getattr(model, "front_end", None) is not None:
        dtype = model.dtype
        return {"signal": torch.randn(samples, WINDOW, generator=generator).to(dtype)}
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        return {"pixel_values": torch.randn(samples, 3, size, size, generator=generator).to(model.dtype)}
    return {"input_ids": torch.randint(2, VOCABULARY, (samples, tokens), generator=generator)}


def batch_for(
    model: PreTrainedModel, *, samples: int = 7, tokens: int = 9, seed: int = 0
) -> dict[str, Tensor]:
    """A calibration batch: ``inputs_for`` with labels where the model needs them."""
    batch = inputs_for(model, samples=samples, tokens=tokens, seed=seed)
    if "input_ids" not in batch:
        generator = torch.Generator().manual_seed(2000 + seed)
        batch["labels"] = torch.randint(0, model.config.num_labels, (samples,), generator=generator)
    return batch


def logits_of(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**inputs).logits
    return logits


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """Same names, same bits."""
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


def varied_plan(anatomy: ModelAnatomy, granularity: Granularity, seed: int = 0) -> PruningPlan:
    """Keep-sets of different sizes and members in different layers; at least one unit goes where it can."""
    draw = random.Random(seed)
    keep = []
    for index, units in enumerate(anatomy.units(granularity)):
        removed = 0 if units == 1 else 1 + index % (units - 1)
        if granularity is Granularity.CHANNEL:
            removed = units // 3 + index
        keep.append(draw.sample(range(units), units - removed))
    return PruningPlan.from_keep(granularity, keep)


def tones(*, samples: int = 96, seed: int = 0) -> TaskData:
    """Three classes of noisy sines: a diagnosis task that a tiny model learns in a few steps."""

    def side(count: int, offset: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed * 7 + offset)
        labels = torch.arange(count) % 3
        time = torch.arange(WINDOW) / WINDOW
        phase = 6.28 * torch.rand(count, 1, generator=generator)
        signal = torch.sin(6.28 * (2 + 5 * labels[:, None]) * time + phase)
        return {"signal": signal + 0.3 * torch.randn(signal.shape, generator=generator), "labels": labels}

    train = side(samples, 1)
    return TaskData(
        task="diagnosis",
        train=train,
        validation=side(samples // 4, 2),
        test=side(samples // 4, 3),
        calibration={name: tensor[: samples // 3] for name, tensor in train.items()},
        classes=("N", "IR", "OR"),
    )
