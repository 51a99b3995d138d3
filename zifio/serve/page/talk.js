// A conversation without its looks: a tree of turns. A turn is what the user said and, for each column, the steps of the reply:
// what the assistant said, and the results of the tools it called. Saying it differently, or being answered again, is another
// turn beside it; nothing is overwritten.

const ROOT = -1;

export class Mistake extends Error {}

export class Talk {
  // turns: [{id, parent, user, replies: [steps, steps]}]; chosen: which turn follows which
  constructor(kept = {}) {
    Object.assign(this, { id: crypto.randomUUID?.() ?? String(Math.random()).slice(2), at: Date.now(), models: [], settings: {}, turns: [], chosen: {} }, kept);
  }

  get title() {
    return this.path[0]?.user.trim().split("\n")[0].slice(0, 80) || "New conversation";
  }

  get columns() {
    return this.models[1] ? [0, 1] : [0];
  }

  beside(turn) {
    return this.turns.filter((one) => one.parent === turn.parent);
  }

  // The turns that are shown, from the first on.
  get path() {
    const path = [];
    for (let at = ROOT; ;) {
      const next = this.turns[this.chosen[at]];
      if (!next || next.parent !== at) return path;
      path.push(next);
      at = next.id;
    }
  }

  // more: the pictures of a turn, and whether drawings answer it
  add(parent, user, replies, more = {}) {
    const turn = { id: this.turns.length, parent: parent?.id ?? ROOT, user, replies, ...more };
    this.turns.push(turn);
    this.choose(turn);
    return turn;
  }

  branch(turn, user, replies) {
    return this.add(this.turns[turn.parent], user, replies, { pictures: turn.pictures, draws: turn.draws });
  }

  choose(turn) {
    this.chosen[turn.parent] = turn.id;
    this.at = Date.now();
  }

  // Everything up to a turn as OpenAI's messages, as a column has seen it; what was asked to be drawn only where it is wanted.
  messages(column, last = this.path.at(-1), drawn = true) {
    const turns = [];
    for (let turn = last; turn; turn = this.turns[turn.parent]) if (drawn || !turn.draws) turns.unshift(turn);
    const system = this.settings.system ? [{ role: "system", content: this.settings.system }] : [];
    return [...system, ...turns.flatMap((turn) => [
      { role: "user", content: contentOf(turn) }, ...(turn.replies[column] ?? turn.replies[0] ?? []).flatMap(message),
    ])];
  }
}

function contentOf({ user, pictures }) {
  if (!pictures?.length) return user;
  return [...pictures.map(({ url }) => ({ type: "image_url", image_url: { url } })), { type: "text", text: user }];
}

function picturesOf(content) {
  const urls = Array.isArray(content) ? content.map((part) => part?.image_url?.url).filter((url) => typeof url === "string") : [];
  return urls.filter((url) => url.startsWith("data:image/")).map((url) => ({ url, alt: "Picture" }));
}

function message(step) {
  if (step.role === "tool") return [{ role: "tool", tool_call_id: step.id, content: step.content }];
  if (!step.content && !step.reasoning && !step.calls.length) return []; // nothing came
  return [{
    role: "assistant", content: step.content,
    ...(step.reasoning ? { reasoning_content: step.reasoning } : {}),
    ...(step.calls.length ? { tool_calls: step.calls.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } })) } : {}),
  }];
}

// What of an assistant's step there is before anything has come.
export function blank(model) {
  return { role: "assistant", model, content: "", reasoning: "", calls: [], tokens: { reasoning: [], content: [] }, error: "" };
}

// Messages as turns; of a second column where it fits the first. Raises Mistake, in words.
function turnsOf(messages, model) {
  if (!Array.isArray(messages)) throw new Mistake("messages: wanted a list.");
  const systems = [], turns = [];
  messages.forEach((one, n) => {
    if (!one || typeof one !== "object") throw new Mistake(`messages.${n}: wanted an object.`);
    const pictures = one.role === "user" ? picturesOf(one.content) : [];
    const content = textOf(pictures.length ? one.content.filter((part) => !part?.image_url) : one.content, n), steps = turns.at(-1)?.steps;
    if (one.role === "system" || one.role === "developer") return systems.push(content);
    if (one.role === "user") return turns.push({ user: content, pictures, steps: [] });
    if (one.role !== "assistant" && one.role !== "tool") throw new Mistake(`messages.${n}.role: wanted system, user, assistant or tool.`);
    if (!steps) throw new Mistake(`messages.${n}: wanted something of the user before it.`);
    if (one.role === "tool") return steps.push({ role: "tool", id: String(one.tool_call_id ?? ""), content });
    const calls = [one.tool_calls ?? []].flat().map((call) => ({ id: String(call?.id ?? ""), name: String(call?.function?.name ?? ""), arguments: String(call?.function?.arguments ?? "{}") }));
    return steps.push({ ...blank(model), content, reasoning: String(one.reasoning_content ?? one.reasoning ?? ""), calls, finish: "stop" });
  });
  return { system: systems.join("\n\n"), turns };
}

function textOf(content, n) {
  if (content === null || content === undefined) return "";
  if (typeof content === "string") return content;
  if (!Array.isArray(content) || content.some((part) => typeof part?.text !== "string")) throw new Mistake(`messages.${n}.content: wanted text.`);
  return content.map((part) => part.text).join("");
}

// A conversation from what was exported, or from anybody's messages. Raises Mistake.
export function imported(value) {
  const given = Array.isArray(value) ? { messages: value } : value;
  if (!given || typeof given !== "object") throw new Mistake("Wanted a list of messages, or an object that has one.");
  const { system, turns } = turnsOf(given.messages, given.model ?? "");
  if (!turns.length) throw new Mistake("messages: wanted something of the user.");
  const other = given.compare ? turnsOf(given.compare.messages, given.compare.model ?? "").turns : [];
  const talk = new Talk({ models: [given.model, given.compare?.model], settings: { system } });
  turns.forEach(({ user, pictures, steps }, n) => {
    const second = other[n]?.user === user ? [other[n].steps] : [];
    talk.add(talk.path.at(-1), user, [steps, ...second], pictures.length ? { pictures } : {});
  });
  return talk;
}

export function asMarkdown(talk) {
  const lines = [`# ${talk.title}`];
  if (talk.settings.system) lines.push("## System", talk.settings.system);
  for (const turn of talk.path) {
    lines.push("## User", ...(turn.pictures ?? []).map(({ url }) => `![](${url})`), turn.user);
    for (const steps of turn.replies) {
      for (const step of steps) {
        if (step.role === "tool") { lines.push("### Result", fenced(step.content)); continue; }
        lines.push(`## ${step.model || "Assistant"}`);
        if (step.reasoning) lines.push(step.reasoning.split("\n").map((line) => `> ${line}`).join("\n"));
        lines.push(...(step.drawn ?? []).map(({ url }, n) => `![Drawing ${n + 1}](${url})`));
        if (step.content) lines.push(step.json ? fenced(step.content, "json") : step.content);
        for (const call of step.calls) lines.push(`### Call of ${call.name}`, fenced(call.arguments, "json"));
      }
    }
  }
  return `${lines.join("\n\n")}\n`;
}

function fenced(text, language = "") {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map((run) => run[0].length));
  const fence = "`".repeat(longest + 1);
  return `${fence}${language}\n${text}\n${fence}`;
}
