"""Text from a pruned language model: what is streamed is what the model would say, token by token."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedModel

from cascade_ops import load_pruned
from serve.decoding import Text, sample
from tests.jobs import WORDS
from tests.serve.conftest import Served

PROMPT = "w3 w14 w15"


@pytest.fixture(scope="module")
def model(language: Served) -> PreTrainedModel:
    return load_pruned(language.run)


def complete(served: Served, **body: Any) -> requests.Response:
    return requests.post(f"{served.url}/v1/completions", json=body, stream=bool(body.get("stream")))


@torch.no_grad()
def greedy(model: PreTrainedModel, ids: list[int], count: int) -> list[int]:
    """Without a cache: the whole sequence anew for every token."""
    written: list[int] = []
    for _ in range(count):
        written.append(int(model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax()))
    return written


def ids_of(text: str) -> list[int]:
    return [WORDS.index(word) + 1 for word in text.split()]


def test_greedy_text_is_the_model_s(language: Served, model: PreTrainedModel) -> None:
    answer = complete(language, prompt=PROMPT, max_tokens=12, temperature=0)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["object"] == "text_completion"
    assert found["model"] == "tiny"
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}
    (choice,) = found["choices"]
    assert choice["finish_reason"] == "length"
    expected = " ".join(WORDS[token - 1] for token in greedy(model, ids_of(PROMPT), 12) if token != 0)
    assert choice["text"] == f" {expected}"


def events(answer: requests.Response) -> list[Any]:
    lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith(b"data: ") for line in lines)
    assert lines[-1] == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


def test_a_stream_is_the_whole_in_pieces(language: Served) -> None:
    asked = {"prompt": ids_of(PROMPT), "max_tokens": 10, "temperature": 0.8, "seed": 3}
    whole = complete(language, **asked).json()
    found = complete(language, **asked, stream=True, stream_options={"include_usage": True})
    assert found.headers["content-type"].startswith("text/event-stream")
    *pieces, last = events(found)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole["choices"][0]["text"]
    assert len(pieces) > 3
    assert [piece["choices"][0]["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]


def test_requests_at_a_time_do_not_mix(language: Served) -> None:
    prompts = [f"w{number} w{number + 5}" for number in range(12)]

    def ask(prompt: str) -> str:
        text: str = complete(language, prompt=prompt, max_tokens=8, temperature=0).json()["choices"][0][
            "text"
        ]
        return text

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, prompts)) == alone
    assert len(set(alone)) > 1


def test_stop_words_end_it(language: Served) -> None:
    whole = complete(language, prompt=PROMPT, max_tokens=12, temperature=0).json()["choices"][0]["text"]
    stop = whole[len(whole) // 2 :][:3]
    found = complete(language, prompt=PROMPT, max_tokens=12, temperature=0, stop=[stop]).json()["choices"][0]
    assert found["finish_reason"] == "stop"
    assert found["text"] == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 422, "prompt"),
        ({"prompt": ""}, 422, "prompt"),
        ({"prompt": []}, 422, "prompt"),
        ({"prompt": [31]}, 422, "below 31"),
        ({"prompt": [-1]}, 422, "prompt"),
        ({"prompt": PROMPT, "max_tokens": 0}, 422, "max_tokens"),
        ({"prompt": PROMPT, "max_tokens": 49}, 422, "at most 48"),
        ({"prompt": [1] * 5000}, 422, "together"),
        ({"prompt": PROMPT, "temperature": -1}, 422, "temperature"),
        ({"prompt": PROMPT, "n": 2}, 422, "n"),
        ({"prompt": PROMPT, "stop": "x" * 257}, 422, "256"),
        ({"prompt": PROMPT, "stop": list("abcde")}, 422, "stop"),
        ({"prompt": PROMPT, "model": "gpt-4"}, 404, "tiny"),
        ({"prompt": PROMPT, "best_of": 2}, 422, "best_of"),
    ],
)
def test_bad_requests(language: Served, body: dict[str, Any], status: int, reason: str) -> None:
    answer = complete(language, **body)
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["error"]["message"]


def test_a_classifier_does_not_write_and_a_writer_does_not_diagnose(served: Served, language: Served) -> None:
    assert "POST /v1/diagnose" in complete(served, prompt=PROMPT).json()["error"]["message"]
    answer = requests.post(f"{language.url}/v1/diagnose", json={"signal": [1.0] * 400, "fs_hz": 12000})
    assert answer.status_code == 422
    assert "POST /v1/completions" in answer.json()["error"]["message"]


def test_sampling_keeps_to_its_share() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = [sample(logits, 1.0, 0.7, generator) for _ in range(500)]
    assert set(drawn) == {0, 1}
    assert drawn.count(0) / 500 == pytest.approx(0.625, abs=0.07)
    assert sample(logits, 0, 1.0, generator) == 0
    for share in (1e-6, 1e-300):
        assert {sample(logits, 1.0, share, generator) for _ in range(20)} == {0}


class Pieces:
    """A tokenizer of bytes."""

    def decode(self, tokens: list[int], **_: Any) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


def test_any_temperature_draws_a_token() -> None:
    logits = torch.tensor([1.0, 9.0, -3.0])
    generator = torch.Generator().manual_seed(0)
    for temperature in (1e-300, 1e-42, 1e-7, 1e-4, 1e-3):
        assert sample(logits, temperature, 1.0, generator) == 1


@pytest.fixture(scope="module")
def metaspace() -> Tokenizer:
    """As Llama's: a word begins with ▁, and the first one's is not shown."""
    words = ["<s>", "\u2581one", "\u2581two", "\u2581three", "s"]
    tokenizer = Tokenizer(WordLevel({word: at for at, word in enumerate(words)}, unk_token="<s>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer


def test_the_first_word_keeps_its_space(metaspace: Tokenizer) -> None:
    prompt = metaspace.encode("one two").ids
    assert metaspace.decode([3]) == "three"  # which is why the prompt is decoded, too
    text = Text(tokenizer=metaspace, stops=(), before=prompt)
    assert [text.add(token)[0] for token in (3, 4, 1)] == [" three", "s", " one"]
    assert Text(tokenizer=metaspace, stops=(), before=()).add(3)[0] == "three"


def test_a_prompt_may_end_within_a_character() -> None:
    text = Text(tokenizer=Pieces(), stops=(), before=list("é€".encode()[:-1]))
    assert "".join(text.add(byte)[0] for byte in "€!".encode()[-2:]) == "€!"


@given(
    text=st.text(max_size=30),
    stops=st.lists(st.text(min_size=1, max_size=4), max_size=3),
    prompt=st.text(max_size=5),
)
def test_pieces_never_show_a_stop_word_and_lose_nothing(text: str, stops: list[str], prompt: str) -> None:
    assume("\N{REPLACEMENT CHARACTER}" not in text + prompt)
    told = Text(tokenizer=Pieces(), stops=tuple(stops), before=list(prompt.encode()))
    shown = ""
    for byte in text.encode():
        piece, stopped = told.add(byte)
        shown += piece
        if stopped:
            break
    else:
        shown += told.rest()
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    # the one that is complete first counts, even where another began before it
    expected = text[: min(found)[1]] if found else text
    assert shown == expected


def test_text_is_told_whole_characters_at_a_time() -> None:
    text = Text(tokenizer=Pieces(), stops=("END",))
    told = [text.add(byte) for byte in "aé€ENxEND!".encode()]
    assert "".join(piece for piece, _ in told) == "aé€ENx"
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(piece for piece, _ in told)
    assert [stopped for _, stopped in told].index(True) == len("aé€ENxEND".encode()) - 1
