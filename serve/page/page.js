import { showResult } from "/result.js";
import { ask, Refusal, useToken } from "/server.js";
import { outerRace, RATE_HZ, RPM } from "/simulated.js";
import { showWriting } from "/writing.js";

const $ = (id) => document.getElementById(id);
const FIELDS = ["file", "fs_hz", "rpm"];
let models = [];
let chosen = null; // a File

async function begin() {
  try {
    const answer = await ask("/v1/models");
    models = (await answer.json()).data;
  } catch (error) {
    if (error.status === 401) {
      $("token-form").hidden = false;
      $("offer").textContent = "";
      $("token-error").textContent = $("token").value ? error.message : "";
      $("token").focus();
    } else {
      $("offer").textContent = error.message;
    }
    return;
  }
  $("token-form").hidden = true;
  $("offer").textContent = models.map((model) => model.title).join(" · ");
  if (models[0].task === "lm") {
    $("title").textContent = "How does this text go on?";
    document.title = "Text completion";
    showWriting(models);
    return;
  }
  $("ask").hidden = false;
  const compressed = models.filter((model) => !model.baseline);
  $("which").hidden = compressed.length < 2;
  for (const model of compressed) $("model").append(new Option(`${model.id} (${model.title})`, model.id));
}

// The dense model first: both then meet a server that is awake.
function compared() {
  const compressed = models.find((model) => model.id === $("model").value) ?? models[0];
  const baseline = models.find((model) => model.baseline && model.id !== compressed.id);
  return baseline ? [baseline, compressed] : [compressed];
}

async function diagnose(request, source) {
  clear();
  busy(true);
  try {
    const answers = [];
    for (const model of compared()) {
      $("status").textContent = `Asking ${model.title} …`;
      const answer = await ask("/v1/diagnose", { method: "POST", ...request(model.id) });
      answers.push({ model, found: await answer.json() });
    }
    $("status").textContent = "";
    showResult(answers, source);
    $("result").hidden = false;
    $("result").focus();
  } catch (error) {
    showError(error);
  } finally {
    busy(false);
  }
}

function upload(model) {
  const form = new FormData();
  form.append("file", chosen);
  for (const name of ["fs_hz", "rpm", "channel"]) {
    const value = $(name).value.trim().replace(",", ".");
    if (value) form.append(name, name === "channel" ? $(name).value.trim() : value);
  }
  form.append("model", model);
  form.append("detail", "full");
  return { body: form };
}

function simulated(model) {
  const body = { signal: outerRace(), fs_hz: RATE_HZ, rpm: RPM, model, detail: "full" };
  return { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
}

function showError(error) {
  if (!(error instanceof Refusal)) throw error;
  $("status").textContent = "";
  $("result").hidden = true;
  const field = error.field === "signal" ? "file" : error.field;
  if (FIELDS.includes(field)) {
    $(`${field}-error`).textContent = error.message;
    $(field).setAttribute("aria-invalid", "true");
    $(field).focus();
  } else {
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

function clear() {
  $("error").hidden = true;
  for (const name of FIELDS) {
    $(`${name}-error`).textContent = "";
    $(name).removeAttribute("aria-invalid");
  }
}

function busy(is) {
  $("ask").setAttribute("aria-busy", String(is));
  for (const button of $("ask").querySelectorAll("button")) button.disabled = is;
}

function choose(file) {
  chosen = file ?? null;
  $("file-name").textContent = chosen ? `${chosen.name}, ${size(chosen.size)}` : "";
  clear();
}

function size(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toPrecision(3)} kB` : `${(bytes / 1e6).toPrecision(3)} MB`;
}

$("file").addEventListener("change", () => choose($("file").files[0]));
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (chosen) diagnose(upload, chosen.name);
  else showError(new Refusal(0, "Choose a recording first.", "file"));
});
$("simulated").addEventListener("click", () => diagnose(simulated, null));
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken($("token").value);
  begin();
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });
}
// a file dropped beside the field must not replace the page
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());

begin();
