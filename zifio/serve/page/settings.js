// The settings of a conversation: from the form to a request of chat completions, and back from one that was exported.

import { Mistake } from "./talk.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const fields = (form) => [...form.elements].filter((one) => one.name);

export function read(form) {
  return Object.fromEntries(fields(form).map((one) => [one.name, one.type === "checkbox" ? one.checked : one.value]));
}

export function write(form, settings) {
  offer(form.elements.tool_choice, settings);
  for (const one of fields(form)) {
    const value = settings[one.name];
    if (one.type === "checkbox") one.checked = value ?? one.defaultChecked;
    else one.value = value ?? (one.tagName === "SELECT" ? one.options[0].value : "");
  }
}

// The names of the tools as choices; what was chosen stays where it can.
export function offer(select, settings) {
  let names = [];
  try { names = toolsOf(settings).map((tool) => tool.function.name); } catch { /* told below the text */ }
  const choices = [["auto", "as it likes"], ["required", "always"], ["none", "never"], ...names.map((name) => [`:${name}`, `always ${name}`])];
  const chosen = select.value;
  select.replaceChildren(...choices.map(([value, text]) => new Option(text, value)));
  select.value = choices.some(([value]) => value === chosen) ? chosen : "auto";
}

function parsed(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Mistake(`${what}: ${error.message}`);
  }
}

// OpenAI's tools; a function alone, or without its wrapping, is wrapped. Raises Mistake.
export function toolsOf(settings) {
  if (!settings.tools?.trim()) return [];
  const given = parsed(settings.tools, "Tools");
  return (Array.isArray(given) ? given : [given]).map((one, n) => {
    const tool = one?.function ? one : { type: "function", function: one };
    if (typeof tool.function?.name !== "string") throw new Mistake(`Tools: number ${n + 1} has no name.`);
    return tool;
  });
}

// The schema, or null. Raises Mistake.
export function schemaOf(settings) {
  if (!settings.schema?.trim()) return null;
  const schema = parsed(settings.schema, "Schema");
  if (!schema || typeof schema !== "object" || Array.isArray(schema)) throw new Mistake("Schema: wanted an object.");
  return schema;
}

// What a request says beside model and messages. Raises Mistake.
export function request(settings) {
  const body = {};
  for (const name of NUMBERS) if (settings[name]) body[name] = Number(settings[name]);
  if (settings.thinking) body.thinking = { type: settings.thinking };
  if (settings.budget && settings.thinking !== "disabled") body.thinking_budget = Number(settings.budget);
  if (settings.logprobs) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  const tools = toolsOf(settings), choice = settings.tool_choice;
  if (tools.length) Object.assign(body, { tools, tool_choice: choice?.startsWith(":") ? { type: "function", function: { name: choice.slice(1) } } : choice || "auto" });
  const schema = settings.use_schema === false ? null : schemaOf(settings);
  if (schema) body.response_format = { type: "json_schema", json_schema: { name: "reply", schema, strict: true } };
  return body;
}

// The settings behind a request.
export function settingsOf(body) {
  const choice = body.tool_choice, schema = body.response_format?.json_schema?.schema;
  const pretty = (value) => (value ? JSON.stringify(value, null, 2) : "");
  return {
    ...Object.fromEntries(NUMBERS.map((name) => [name, body[name] === undefined ? "" : String(body[name])])),
    thinking: body.thinking?.type ?? "", budget: String(body.thinking_budget ?? body.thinking?.budget_tokens ?? ""),
    logprobs: Boolean(body.logprobs), tools: pretty(body.tools), schema: pretty(schema), use_schema: true,
    tool_choice: choice?.function ? `:${choice.function.name}` : choice ?? "auto",
  };
}
