// What is asked of the server, and what went wrong as a message for a person.

let token = "";

export function useToken(value) {
  token = value;
}

export class Refusal extends Error {
  constructor(status, message, field) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

export async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Refusal(0, "The server cannot be reached. Is it still running?", null);
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  if (answer.status === 503) {
    const seconds = Number(answer.headers.get("Retry-After")) || 1;
    return new Refusal(503, `The server is busy. Try again in ${seconds === 1 ? "a second" : `${seconds} seconds`}.`, null);
  }
  try {
    const { error } = await answer.json();
    return new Refusal(answer.status, sentence(error.message), error.field);
  } catch {
    return new Refusal(answer.status, `The server answered ${answer.status} without a reason.`, null);
  }
}

function sentence(message) {
  const upper = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?…]$/.test(upper) ? upper : `${upper}.`;
}

export async function* events(answer) {
  const decoder = new TextDecoder();
  let held = "";
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read().catch(() => ({ done: true }));
    if (done) throw new Refusal(0, "The server broke off: the text is not complete. Try again.", null);
    held += decoder.decode(value, { stream: true });
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
