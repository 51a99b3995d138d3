// Talks to the server: its models, and replies as they come. A key stays in this tab.

const KEY = "zifio-chat/key";

export class Failed extends Error {
  // status 0: the server was not reached, or was lost
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = () => sessionStorage.getItem(KEY) ?? "";

export function useKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

async function ask(path, given = {}) {
  const headers = { ...given.headers, ...(key() ? { Authorization: `Bearer ${key()}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...given, headers, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failed(0, "The server is not reached.");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Failed(answer.status, said.error?.message ?? `The server answers ${answer.status}.`);
}

export async function models() {
  return (await (await ask("/v1/models")).json()).data;
}

// Drawings as data URLs, and their width and height. Raises Failed.
export async function drawings(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const answer = await ask("/v1/images/generations", { method: "POST", headers, body: JSON.stringify(body), signal });
  const said = await answer.json().catch(() => ({ error: { message: "The connection was lost." } }));
  if (said.error) throw new Failed(500, said.error.message);
  return { urls: said.data.map((one) => one.url), size: said.size.split("x").map(Number), completion: said.usage.output_tokens };
}

// The chunks of a reply. Raises Failed as the server words it, or where the connection was lost; what came has been given.
export async function* reply(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const answer = await ask("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const lost = () => new Failed(0, "The connection was lost. What came is kept.");
  for (let held = ""; ;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : lost();
    }
    if (part.done) throw lost();
    const events = (held + part.value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue; // a sign of life
      if (event === "data: [DONE]") return;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Failed(500, chunk.error.message);
      yield chunk;
    }
  }
}

// Adds a chunk to a step: text, thinking and how long it took, calls, tokens, what it cost.
export function hear(step, chunk, now) {
  if (chunk.usage) step.usage = { completion: chunk.usage.completion_tokens, reasoning: chunk.usage.completion_tokens_details?.reasoning_tokens ?? 0 };
  const choice = chunk.choices[0];
  if (!choice) return;
  const { delta } = choice, thought = delta.reasoning_content ?? delta.reasoning ?? "";
  if (thought) {
    step.reasoning += thought;
    step.pieces = (step.pieces ?? 0) + 1;
    step.since ??= now;
  }
  if (step.since !== undefined && !step.hasThought) {
    step.thinks = now - step.since;
    step.hasThought = Boolean(delta.content || delta.tool_calls);
  }
  step.content += delta.content ?? "";
  for (const call of delta.tool_calls ?? []) step.calls.push({ id: call.id, name: call.function.name, arguments: call.function.arguments });
  step.finish = choice.finish_reason ?? step.finish;
  for (const kind of ["reasoning", "content"]) {
    const told = choice.logprobs?.[kind === "content" ? kind : "reasoning_content"] ?? [];
    step.tokens[kind].push(...told.map((one) => [spelled(one), rounded(one), one.top_logprobs.map((top) => [spelled(top), rounded(top)])]));
  }
}

const rounded = (told) => Math.round(told.logprob * 1e4) / 1e4;

// A token as text; one that is no whole character by its bytes.
function spelled({ bytes, token }) {
  try {
    return bytes ? new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes)) : token;
  } catch {
    return bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }
}
