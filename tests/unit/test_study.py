"""The study's parts: a grid matched in parameters, cuts that are what they say, figures known beforehand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from cascade_ops.anatomy import anatomy_of, blocks_of
from cascade_ops.granularity import Granularity
from cascade_ops.loss import per_sample_loss
from tests.factories import batch_for, llama_like
from workflows.study import job
from workflows.study.analysis import analyse, page
from workflows.study.arms import ARMS, cut, judged
from workflows.study.cell import StudyOptions, between, run_cell
from workflows.study.grid import GRID, Architecture


def test_architectures_differ_in_kind_not_in_size() -> None:
    sizes, names = [], set()
    for cell in GRID:
        fields = cell.config(16)
        anatomy = anatomy_of(AutoConfig.for_model(**fields))
        sizes.append(anatomy.backbone_params)
        names.add(cell.name)
        assert anatomy.gated == cell.gated
        assert (max(anatomy.layers[0].heads_per_kv) > 1) == cell.shared
    assert len(names) == 16
    assert max(sizes) / min(sizes) < 1.01


def test_arms_are_what_they_say() -> None:
    model = llama_like(heads=6, kv_heads=2, intermediate_size=20)
    one = judged(model, batch_for(model, samples=8))
    before = [parameter.clone() for parameter in model.parameters()]
    for ratio in (0.3, 0.5):
        regrouped = anatomy_of(cut(one, "regrouped", ("heads", "channels"), ratio))
        apart = anatomy_of(cut(one, "apart", ("heads", "channels"), ratio))
        error = anatomy_of(cut(one, "error", ("heads", "channels"), ratio))
        for layers in zip(regrouped.layers, apart.layers, error.layers, strict=True):
            together, torn, wrong = layers
            assert torn.channels <= together.channels == wrong.channels
            assert together.kv_heads == wrong.kv_heads
            assert torn.heads >= 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_wrong_pairing_meets_rows_of_different_channels() -> None:
    model = llama_like(intermediate_size=20)
    one = judged(model, batch_for(model, samples=8))
    wrong = cut(one, "error", ("channels",), 0.5)
    for index, (block, dense) in enumerate(zip(blocks_of(wrong), blocks_of(model), strict=True)):
        for part, name in (("gate", "gate_proj"), ("up", "up_proj")):
            best = one.rows[part, index].argsort(descending=True)[:10].sort().values
            weight = getattr(dense.mlp, name).weight[best]
            assert torch.equal(getattr(block.mlp, name).weight, weight), (part, index)


def test_a_misplaced_sum_boosts_the_wrong_group() -> None:
    """A group whose heads matter must stay; with scores of heads h ≡ g it goes."""
    model = llama_like(heads=6, kv_heads=2, num_hidden_layers=1)
    (block,) = blocks_of(model)
    with torch.no_grad():
        out = block.self_attn.o_proj.weight.view(-1, 6, 4)
        out[:, :3] *= (
            1e-3  # group 0 hardly speaks; of group 1 heads 3 and 5 count towards h ≡ 1, head 4 towards 0
        )
        out[:, 3] *= 1e-3
        out[:, 5] *= 1e-3
    data = batch_for(model, samples=8)
    one = judged(model, data)
    right, wrong = (cut(one, arm, ("heads",), 0.5) for arm in ("regrouped", "error"))
    dense = float(per_sample_loss(model, data).mean().detach())
    lost = [abs(float(per_sample_loss(each, data).mean().detach()) - dense) for each in (right, wrong)]
    assert lost[1] > 20 * lost[0]


def test_arms_agree_where_nothing_is_shared_or_gated() -> None:
    model = llama_like("arcee", heads=4, kv_heads=4)
    one = judged(model, batch_for(model, samples=8))
    first, *others = (cut(one, arm, ("heads", "channels"), 0.5).state_dict() for arm in ARMS)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_between_points() -> None:
    xs, ys = (0.0, 0.3, 0.6), (0.0, 1.0, 4.0)
    assert [between(xs, ys, x) for x in (0.0, 0.15, 0.3, 0.45, 0.6, 0.9)] == pytest.approx(
        [0, 0.5, 1, 2.5, 4, 4]
    )


def rows_of(predictive: bool) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(12):
        for ratio in (0.5, 0.9):
            for parts in ("heads", "channels", "heads+channels"):
                for arm in ARMS:
                    gap = float(generator.random())
                    fall = gap * 0.6 if predictive else float(generator.random()) * 0.6
                    rows.append(
                        {
                            "architecture": f"A{number}",
                            "seed": 0,
                            "parts": parts,
                            "arm": arm,
                            "ratio": ratio,
                            "structural": True,
                            "gap": gap,
                            "safe": 0.5,
                            "predicted_loss": 1.0,
                            "dense_accuracy": 0.99,
                            "loss": 0.1 + fall,
                            "dense_loss": 0.1,
                            "accuracy": 0.99 - fall,
                            "recovered_accuracy": 0.98 if parts == "heads+channels" else None,
                        }
                    )
    return rows


def test_figures_tell_a_predictor_from_chance() -> None:
    known, chance = analyse(rows_of(True)), analyse(rows_of(False))
    assert known["predictors"]["A(r)"]["spearman"]["value"] == pytest.approx(1)
    assert known["predictors"]["A(r)"]["auc"]["value"] == 1
    assert known["left_out"]["A(r)"]["balanced_accuracy"] > 0.95
    assert known["left_out"]["A(r)"]["threshold_low"] == pytest.approx(0.2 / 0.6, abs=0.05)
    for predictor, right in (("A(r)", 0.0),):
        found = chance["predictors"][predictor]["spearman"]
        assert found["low"] < right < found["high"]
    assert np.isnan(known["predictors"]["ΔL(S_r) by shutting"]["spearman"]["value"]), "constant"
    assert "| A0 |" in page(rows_of(True), known)


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells on disk are not run again; only what they say counts."""
    cells = (Architecture(attention="MHA", mlp="GELU"), Architecture(attention="MQA", mlp="SwiGLU"))
    options = StudyOptions(steps=2)
    folder = tmp_path / job.CELLS
    folder.mkdir()
    for cell in cells:
        rows = [{**row, "architecture": cell.name} for row in rows_of(True)[:18]]
        (folder / f"{cell.name}-0-{job._key(options)}.json").write_text(json.dumps(rows))

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a cell was run again")

    monkeypatch.setattr(job, "connected", refused)
    found = job.run_study(tmp_path, options, seeds=(0,), workers=1, grid=cells)
    assert found["models"] == 2
    assert found["cuts"] == 36
    assert {path.name for path in tmp_path.iterdir()} == {"cells", "study.json", "study.md", "study.parquet"}
    with pytest.raises(AssertionError, match="run again"):
        job.run_study(tmp_path, StudyOptions(steps=3), seeds=(0,), workers=1, grid=cells)


def test_a_cell_gives_a_row_for_each_cut() -> None:
    small = {"seconds": 1.0, "labels": ["N", "IR014", "OR014"], "loads": ["0", "3"]}
    options = StudyOptions(
        data="simulated", steps=3, recovery=1, budget=120, ratios=(0.5, 0.7), options=small
    )
    rows = run_cell(Architecture(attention="GQA-4", mlp="SwiGLU"), 0, options)
    assert len(rows) == 3 * len(ARMS) * 2
    both = [row for row in rows if row["parts"] == "heads+channels" and row["ratio"] == 0.7]
    assert all(row["recovered_accuracy"] is not None for row in both)
    assert {row["structural"] for row in rows if row["arm"] == "apart"} == {False}
    for row in rows:
        assert row["kept_params"] < row["params"]
        assert row["gap"] >= 0
    assert analyse(rows)["models"] == 1


def test_copies_are_cut(tmp_path: Path) -> None:
    model = llama_like()
    one = judged(model, batch_for(model, samples=4))
    twin = copy.deepcopy(model)
    smaller = cut(one, "regrouped", ("channels",), 0.5)
    assert sum(anatomy_of(smaller).units(Granularity.CHANNEL)) < sum(
        anatomy_of(twin).units(Granularity.CHANNEL)
    )
