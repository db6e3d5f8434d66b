"""The record of a score run: written, read back the same, refused where it is damaged."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_ops.anatomy import anatomy_of
from cascade_ops.batches import sequential
from cascade_ops.errors import CheckpointError
from cascade_ops.granularity import Granularity
from cascade_ops.results import LayerScores
from cascade_ops.scoring import score
from cascade_ops.surgery import prune
from tests.factories import batch_for, llama_like, varied_plan
from workflows.scoring.record import (
    DOCUMENT,
    TABLE,
    ScoredUnits,
    ScoreReport,
    ShardRecord,
    WorkerRecord,
    read_records,
    scored_units,
    tensors,
    write_records,
)

CRITERIA = ("taylor", "magnitude", "block_influence")


@pytest.fixture(scope="module")
def report() -> ScoreReport:
    """Of a model with a layer gone and other heads and channels in each that is left."""
    model = llama_like(heads=6, kv_heads=2, num_hidden_layers=4)
    for granularity in (Granularity.HEAD, Granularity.CHANNEL, Granularity.LAYER):
        prune(model, varied_plan(anatomy_of(model), granularity))
    anatomy = anatomy_of(model)
    batch = batch_for(model)
    return ScoreReport(
        model="models/größer",
        family=anatomy.family,
        model_type=anatomy.model_type,
        params=anatomy.total_params,
        heads_per_kv=tuple(layer.heads_per_kv for layer in anatomy.layers),
        task="lm",
        samples=7,
        tokens=63,
        length=9,
        criteria=CRITERIA,
        scores=scored_units(score(model, sequential(batch, 3), CRITERIA), anatomy),
        shards=(ShardRecord(first=0, stop=3, bytes=1234, seconds=0.5),),
        workers=(
            WorkerRecord(name="w0", node="a", items=3, busy_seconds=1 / 3, peak_bytes=2**33, lost=False),
            WorkerRecord(name="w1", node="", items=0, busy_seconds=0.0, peak_bytes=0, lost=True),
        ),
        threads=1,
        dtype="float32",
        device="cpu",
        seconds=1.25,
        tokens_per_second=63 / 1.25,
        object_store_bytes=4096,
        data={"name": "tones", "nested": {"n": 1}},
        provenance={"seed": 0},
    )


@pytest.fixture
def folder(report: ScoreReport, tmp_path: Path) -> Path:
    write_records(report, tmp_path)
    return tmp_path


def test_what_is_written_is_read_back_the_same(report: ScoreReport, folder: Path) -> None:
    assert len({len(layer.scores) for layer in report.scores[-1].layers}) >= 1
    assert [layer.source for layer in report.scores[0].layers] != list(range(4))
    assert read_records(folder) == report


def test_scores_come_back_bit_for_bit(report: ScoreReport, folder: Path) -> None:
    written, read = tensors(report), tensors(read_records(folder))
    assert written.keys() == read.keys()
    assert {granularity for _, granularity in read} == set(Granularity)
    for key, one in written.items():
        assert (one.criterion, one.granularity, one.samples) == (*key, 7)
        for row, again in zip(one.per_layer, read[key].per_layer, strict=True):
            assert row.dtype == torch.float64
            assert torch.equal(row, again)


def test_the_scores_are_those_that_were_computed(report: ScoreReport) -> None:
    model = llama_like(heads=6, kv_heads=2, num_hidden_layers=4)
    for granularity in (Granularity.HEAD, Granularity.CHANNEL, Granularity.LAYER):
        prune(model, varied_plan(anatomy_of(model), granularity))
    for key, one in score(model, sequential(batch_for(model), 3), CRITERIA).items():
        for row, again in zip(one.per_layer, tensors(report)[key].per_layer, strict=True):
            assert torch.equal(row, again)


def test_the_table_is_plain_parquet_with_one_row_for_each_unit(report: ScoreReport, folder: Path) -> None:
    table = pq.read_table(folder / TABLE)
    assert table.column_names == ["criterion", "granularity", "layer", "source", "unit", "score"]
    assert table.schema.field("score").type == pa.float64()
    assert table.schema.metadata[b"schema"] == b"cascade.score/1"
    assert table.schema.metadata[b"model"].decode() == "models/größer"
    expected = [
        {
            "criterion": one.criterion,
            "granularity": one.granularity,
            "layer": layer,
            "source": row.source,
            "unit": unit,
            "score": value,
        }
        for one in report.scores
        for layer, row in enumerate(one.layers)
        for unit, value in enumerate(row.scores)
    ]
    assert table.to_pylist() == expected


def test_the_document_is_strict_json_without_the_scores(folder: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"), parse_constant=refuse)
    assert (document["schema"], document["table"]) == ("cascade.score/1", "scores.parquet")
    assert "scores" not in document
    assert document["workers"][1]["lost"] is True


FLOATS = st.floats(allow_nan=False, width=64)
LAYERS = st.lists(st.lists(FLOATS, min_size=1, max_size=4), min_size=1, max_size=4)
NAMES = st.sampled_from([(c, g.value) for c in ("taylor", "wanda", "amp") for g in Granularity])


@settings(max_examples=40, deadline=None)
@given(drawn=st.dictionaries(NAMES, LAYERS, max_size=5))
def test_any_scores_survive_in_their_order(
    report: ScoreReport,
    drawn: dict[tuple[str, str], list[list[float]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One layer or many, one unit or many, infinite ones too."""
    scores = tuple(
        ScoredUnits(
            criterion=criterion,
            granularity=granularity,
            layers=tuple(
                LayerScores(source=2 * index, scores=tuple(row), kept=()) for index, row in enumerate(rows)
            ),
        )
        for (criterion, granularity), rows in drawn.items()
    )
    folder, one = tmp_path_factory.mktemp("any"), replace(report, scores=scores)
    write_records(one, folder)
    assert read_records(folder) == one


def test_numbers_that_are_none_are_kept(report: ScoreReport, tmp_path: Path) -> None:
    """A sweep refuses activations that are not finite; a score that is none all the same must not pass as one."""
    layer = LayerScores(source=0, scores=(1.0, math.nan, -math.inf), kept=())
    one = ScoredUnits(criterion="taylor", granularity="channel", layers=(layer,))
    write_records(replace(report, scores=(one,), seconds=math.nan), tmp_path)
    read = read_records(tmp_path)
    assert math.isnan(read.seconds)
    assert str(read.scores) == str((one,))


# ------------------------------------------------------------------------------------------ damage


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_records(folder)
    message = str(caught.value)
    assert str(folder) in message
    return message


@pytest.mark.parametrize("name", [DOCUMENT, TABLE])
@pytest.mark.parametrize("keep", [0, 1, 50, -1, -30])
def test_a_damaged_file_is_refused(folder: Path, name: str, keep: int) -> None:
    path = folder / name
    content = path.read_bytes()
    if name == DOCUMENT and keep == -1:
        keep = -2  # the last byte is a line feed
    path.write_bytes(content[:keep])
    refusal(folder)


@pytest.mark.parametrize("name", [DOCUMENT, TABLE])
def test_an_absent_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert DOCUMENT in refusal(folder)
    refusal(folder / "nowhere")


@pytest.mark.parametrize("schema", ["cascade.score/2", "cascade.report/1", None, 1, [1]])
def test_another_schema_is_refused(folder: Path, schema: object) -> None:
    document = json.loads((folder / DOCUMENT).read_text())
    (folder / DOCUMENT).write_text(json.dumps({**document, "schema": schema}))
    assert "expected schema 'cascade.score/1'" in refusal(folder)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"x"', "{}"])
def test_another_document_is_refused(folder: Path, text: str) -> None:
    (folder / DOCUMENT).write_text(text)
    assert "expected schema" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shards", 1),
        ("shards", [1]),
        ("shards", [{"first": 0}]),
        ("workers", [[]]),
        ("data", 5),
        ("provenance", []),
        ("seconds", "soon"),
        ("unheard_of", 1),
        ("heads_per_kv", 3),
    ],
)
def test_an_edited_document_is_refused(folder: Path, name: str, value: object) -> None:
    document = json.loads((folder / DOCUMENT).read_text())
    (folder / DOCUMENT).write_text(json.dumps({**document, name: value}))
    refusal(folder)


def test_a_document_that_lacks_a_field_is_refused(folder: Path) -> None:
    document = json.loads((folder / DOCUMENT).read_text())
    for name in ("model", "samples", "shards"):
        rest = {key: value for key, value in document.items() if key != name}
        (folder / DOCUMENT).write_text(json.dumps(rest))
        refusal(folder)


def test_a_table_that_lacks_a_column_or_has_another_type_is_refused(folder: Path) -> None:
    table = pq.read_table(folder / TABLE)
    pq.write_table(table.drop_columns(["source"]), folder / TABLE)
    refusal(folder)
    other = table.set_column(5, "score", pa.array(["high"] * len(table)))
    pq.write_table(other, folder / TABLE)
    refusal(folder)
