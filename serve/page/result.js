import { bar, spectrum, waveform } from "/charts.js";

const $ = (id) => document.getElementById(id);
const SHOWN_CLASSES = 4;
const MEANING = {
  BPFO: "outer ring: a ball rolls over a spot on it",
  BPFI: "inner ring: a spot on it passes the balls",
  "2×BSF": "a ball: its spot strikes both rings in each turn",
};
const CLEAR = 4; // times its surroundings: noise rarely rises that far

export function showResult(answers, source) {
  const { found } = answers[answers.length - 1];
  const simulated = source === null ? "Simulated recording with a damaged outer race. " : "";
  $("verdict").textContent = `${capital(found.title)} (${percent(found.confidence)} sure)`;
  $("agreement").textContent = simulated + agreement(answers);
  $("sides").replaceChildren(...answers.map(side));
  showEvidence(found);
}

function agreement(answers) {
  const { windows } = answers[answers.length - 1].found;
  const heard = `${windows.used} windows of ${((1000 * windows.samples) / windows.rate_hz).toFixed(0)} ms were heard, ` +
    `${percent(windows.agreement)} of them say so.`;
  if (answers.length < 2) return heard;
  const [dense, compressed] = answers.map((answer) => answer.found);
  if (dense.diagnosis === compressed.diagnosis) return `The dense and the compressed model agree. ${heard}`;
  return `The models disagree: the dense one says ${dense.title}. ${heard}`;
}

function side({ model, found }) {
  const card = made("article", `card side ${model.baseline ? "dense" : "compressed"}`);
  const facts = made("dl", "facts");
  const rows = [
    ["Confidence", percent(found.confidence)],
    ["Time in the model", `${found.latency_ms.model.toPrecision(3)} ms`],
    ["Time in all", `${found.latency_ms.total.toPrecision(3)} ms`],
    ["Size on disk", bytes(model.size_bytes)],
    ["Parameters", model.total_params.toLocaleString("en")],
  ];
  if (model.compression) rows.push(["Backbone", `${model.compression.toPrecision(3)}× smaller`]);
  if (model.metric && model.metric.value !== null) rows.push([`Tested ${model.metric.name}`, percent(model.metric.value, 1)]);
  for (const [name, value] of rows) facts.append(made("dt", "", name), made("dd", "", value));
  const bars = made("ul", "bars");
  const likely = Object.entries(found.probabilities).sort((a, b) => b[1] - a[1]).slice(0, SHOWN_CLASSES);
  for (const [name, share] of likely) {
    const row = made("li");
    row.append(made("span", "", name), bar(share), made("span", "value", percent(share)));
    bars.append(row);
  }
  card.append(made("h3", "", model.baseline ? "Dense" : `Compressed: ${model.id}`), made("p", "says", capital(found.title)));
  card.append(facts, bars);
  return card;
}

function showEvidence({ evidence, evidence_missing: missing }) {
  const { lines, strongest } = evidence;
  $("spectrum").replaceChildren(spectrum(evidence.spectrum.hz, evidence.spectrum.amplitude, lines, strongest));
  $("waveform").replaceChildren(waveform(evidence.waveform.samples, evidence.waveform.seconds_per_sample));
  $("evidence-lead").textContent = missing ? `No fault frequencies: ${missing}.` : reading(evidence);
  $("lines-region").hidden = lines.length === 0;
  const rows = lines.map((line) => {
    const row = made("tr", line.name === strongest ? "strongest" : "");
    const name = made("th", "", line.name);
    name.scope = "row";
    row.append(name, made("td", "", line.hz.toFixed(1)), made("td", "", times(line.prominence)));
    row.append(made("td", "", MEANING[line.name] ?? line.fault));
    return row;
  });
  $("lines").tBodies[0].replaceChildren(...rows);
}

function reading({ lines, strongest, bearing, rpm }) {
  const line = lines.find((one) => one.name === strongest);
  const where = `${bearing} at ${rpm.toFixed(0)} rpm.`;
  if (!line) return `${where} The spectrum does not reach its fault frequencies.`;
  if (line.prominence < CLEAR) return `${where} No fault frequency stands out: not every fault shows here.`;
  return `${where} ${strongest} stands out, ${times(line.prominence)} its surroundings: ${MEANING[strongest]}.`;
}

export function made(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const times = (factor) => `${factor < 10 ? factor.toFixed(1) : factor.toFixed(0)}×`;

// Never rounded up to certainty.
function percent(share, decimals = 0) {
  const rounded = (100 * share).toFixed(decimals);
  return share < 1 && Number(rounded) === 100 ? `>${(100 - 10 ** -decimals).toFixed(decimals)} %` : `${rounded} %`;
}

function bytes(count) {
  return count < 1e6 ? `${(count / 1e3).toPrecision(3)} kB` : `${(count / 1e6).toPrecision(3)} MB`;
}
