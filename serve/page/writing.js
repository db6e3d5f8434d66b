import { made } from "/result.js";
import { ask, events, Refusal } from "/server.js";

const $ = (id) => document.getElementById(id);
const TOKENS = 48;

export function showWriting(models) {
  $("write").hidden = false;
  const compressed = models.find((model) => !model.baseline) ?? models[0];
  const compared = [models.find((model) => model.baseline), compressed].filter(Boolean);
  $("write").addEventListener("submit", (event) => {
    event.preventDefault();
    write(compared, $("prompt").value);
  });
}

async function write(models, prompt) {
  const button = $("write").querySelector("button");
  button.disabled = true;
  $("write-error").hidden = true;
  $("prompt-error").textContent = "";
  $("texts").replaceChildren();
  try {
    for (const model of models) {
      $("write-status").textContent = `${model.title} is writing …`;
      await writeOne(model, prompt);
    }
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    const place = error.field === "prompt" ? $("prompt-error") : $("write-error");
    place.textContent = error.message;
    place.hidden = false;
  } finally {
    $("write-status").textContent = "";
    button.disabled = false;
  }
}

async function writeOne(model, prompt) {
  const card = made("article", `card side ${model.baseline ? "dense" : "compressed"}`);
  const text = made("p", "written");
  const speed = made("p", "hint");
  text.append(made("span", "given", prompt));
  const began = performance.now();
  const body = { model: model.id, prompt, max_tokens: TOKENS, temperature: 0, stream: true, stream_options: { include_usage: true } };
  const answer = await ask("/v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  card.append(made("h3", "", model.title), text, speed);
  $("texts").append(card);
  let first = null;
  for await (const piece of events(answer)) {
    first ??= performance.now();
    if (piece.choices.length) text.append(piece.choices[0].text);
    if (piece.usage) speed.textContent = told(began, first, performance.now(), piece.usage.completion_tokens, model);
  }
}

function told(began, first, ended, tokens, model) {
  const rate = tokens > 1 ? ((1000 * (tokens - 1)) / (ended - first)).toFixed(0) : "–";
  return `first token after ${(first - began).toFixed(0)} ms, then ${rate} tokens/s; ${(model.size_bytes / 1e6).toPrecision(3)} MB`;
}
