"""Structural SIA: κ and π from the anatomy alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import transformers
from transformers import PreTrainedModel

from cascade_ops.anatomy import anatomy_of
from cascade_ops.errors import UnsupportedFamilyError
from cascade_ops.granularity import Granularity
from cascade_ops.plan import PruningPlan
from cascade_ops.sia import check_sia
from cascade_ops.surgery import prune
from tests.factories import bert, classifier, gpt2, gpt_neox, llama_like, opt

MODELS: dict[str, tuple[Callable[[], PreTrainedModel], int, int]] = {
    "MHA+GELU": (gpt2, 1, 1),
    "MHA+GELU neox": (gpt_neox, 1, 1),
    "MHA+ReLU": (opt, 1, 1),
    "MHA+GELU encoder": (bert, 1, 1),
    "MHA+GELU classifier": (lambda: classifier(gpt2), 1, 1),
    "MHA+SwiGLU": (lambda: llama_like(heads=4, kv_heads=4), 1, 2),
    "GQA+SwiGLU": (lambda: llama_like(heads=6, kv_heads=2), 3, 2),
    "MQA+SwiGLU": (lambda: llama_like(heads=4, kv_heads=1), 4, 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_kappa_and_pi(name: str) -> None:
    build, kappa, pi = MODELS[name]
    report = check_sia(build())
    found = {verdict.granularity: (verdict.kappa, verdict.pi) for verdict in report.verdicts}
    assert found == {
        Granularity.LAYER: (1, 1),
        Granularity.HEAD: (kappa, 1),
        Granularity.KV_GROUP: (1, 1),
        Granularity.CHANNEL: (1, pi),
    }
    for verdict in report.verdicts:
        assert verdict.holds == ((verdict.kappa, verdict.pi) == (1, 1))
        assert verdict.reason.startswith("holds" if verdict.holds else "violated")
        assert report[verdict.granularity] is verdict


def test_where_it_fails_the_regrouping_is_named() -> None:
    report = check_sia(llama_like(heads=6, kv_heads=2))
    assert "kv_group" in report[Granularity.HEAD].reason
    assert "triple" in report[Granularity.CHANNEL].reason


def test_a_config_or_an_anatomy_is_enough() -> None:
    model = llama_like()
    assert check_sia(model.config) == check_sia(anatomy_of(model)) == check_sia(model)


def test_the_most_shared_group_decides_in_a_ragged_model() -> None:
    model = llama_like(heads=6, kv_heads=2)
    prune(model, PruningPlan.from_keep(Granularity.HEAD, [[0, 3], [0, 3, 4], [0, 3]]))
    assert check_sia(model)[Granularity.HEAD].kappa == 2


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(UnsupportedFamilyError, match="mpt"):
        check_sia(transformers.MptConfig(d_model=16, n_heads=4, n_layers=2, vocab_size=40))
