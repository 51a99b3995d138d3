// The chat: which conversation is before you, what the keys do, what is asked and drawn.

import { $, make, say, themed } from "/shared/make.js";
import { fit } from "/shared/maths.js";
import { drawings, Failed, hear, key, models, reply, useKey } from "./net.js";
import { listen, taken as attached, wait, waiting } from "./pictures.js";
import { offer, read, request, schemaOf, settingsOf, toolsOf, write } from "./settings.js";
import { all, fetched, forget, keep, last, placeOf, save } from "./store.js";
import { asMarkdown, blank, imported, Mistake, Talk } from "./talk.js";
import { turnView } from "./view.js";

const SAVE_MS = 1000;
const DRAWINGS = 4; // at once
const TICK_MS = 250; // nothing comes of drawings before they are done
const NEAR = 80; // pixels from the end within which the page follows what comes
const state = { talk: new Talk(), models: [], kinds: new Map(), live: new Set(), views: new Map(), abort: null, saved: 0, follows: true, at: 0, place: 0 };

// Start --------------------------------------------------------------------------------------------------------------

async function start() {
  try {
    const every = await models();
    state.models = every.map((one) => one.id);
    state.kinds = new Map(every.map((one) => [one.id, one]));
  } catch (error) {
    $("ask").hidden = error.status === 401;
    if (error.status === 401) return login(error.message);
    say(`${error.message} Trying again.`);
    setTimeout(start, 2000);
    return;
  }
  say("");
  $("login").hidden = true;
  $("ask").hidden = false;
  $("forget").hidden = !key();
  $("model").replaceChildren(...state.models.map((name) => new Option(name)));
  $("second").replaceChildren(new Option("none", ""), ...state.models.map((name) => new Option(name)));
  show(state.talk.turns.length ? state.talk : last() ?? new Talk());
  $("text").focus();
}

function login(why) {
  $("login").hidden = false;
  $("empty").hidden = true;
  $("key").value = "";
  $("key").focus();
  $("login").querySelector("label").textContent = key() ? why : "This server wants a key. It is kept in this tab alone.";
}

// The conversation ---------------------------------------------------------------------------------------------------

function show(talk) {
  const [one, two] = talk.models.map((name) => (state.models.includes(name) ? name : ""));
  talk.models = [one || state.models[0], two ?? ""];
  state.talk = talk;
  $("model").value = talk.models[0];
  $("second").value = talk.models[1];
  write($("form"), talk.settings);
  checked();
  draw();
  scrollTo(0, document.documentElement.scrollHeight);
}

function draw() {
  const { talk } = state;
  state.views.clear();
  $("log").replaceChildren(...talk.path.map((turn) => turnView(talk, turn, acts, state.live, state.views)));
  $("attach").hidden = !reads();
  $("draws").hidden = $("drawing").hidden = !paints();
  mode();
  $("empty").hidden = talk.turns.length > 0;
  $("greeting").textContent = talk.columns.length > 1 ? `Ask ${talk.models.join(" and ")} something.` : `Ask ${talk.models[0]} something.`;
  document.title = talk.turns.length ? `${talk.title} · zifio chat` : "zifio chat";
  document.body.classList.toggle("wide", talk.columns.length > 1 || talk.path.some((turn) => turn.replies.length > 1));
  fit($("log"));
  follow();
}

// Whether the first model reads pictures, and whether it draws.
const reads = () => Boolean(state.kinds.get(state.talk.models[0])?.input_modalities?.includes("image"));
const paints = () => Boolean(state.kinds.get(state.talk.models[0])?.output_modalities?.includes("image"));

const isDrawing = () => paints() && $("draw").checked;

// The message is said, or what is to be drawn.
function mode() {
  $("send").textContent = isDrawing() ? "Draw" : "Send";
  $("text").placeholder = isDrawing() ? "What to draw" : "Your message";
}

function follow() {
  if (state.follows) scrollTo(0, document.documentElement.scrollHeight);
}

function store() {
  state.saved = performance.now();
  if (!keep(state.talk)) say("This browser has no room left: the conversation is not kept. Export it, or delete others.");
}

const acts = {
  opened: { thinking: false },
  say,
  use() { return reads() ? (picture) => { $("draw").checked = false; mode(); wait(picture); } : undefined; },
  save: store,
  edit(turn, text) { ask((replies) => state.talk.branch(turn, text, replies)); },
  choose(turn) {
    if (busy()) return;
    state.talk.choose(turn);
    store();
    state.follows = false;
    draw();
    const place = state.talk.beside(turn).indexOf(turn);
    document.getElementById(`${place ? "Previous" : "Next"}-${turn.id}`)?.focus();
  },
  regenerate(turn, column) {
    if (busy()) return;
    const replies = turn.replies.map((steps, n) => (n === column ? [] : structuredClone(steps)));
    answer(() => state.talk.branch(turn, turn.user, replies), [column]);
  },
  results(turn, column, contents) {
    if (busy()) return;
    answer(() => {
      const steps = turn.replies[column], { calls } = steps.at(-1);
      steps.push(...contents.map((content, n) => ({ role: "tool", id: calls[n].id, content })));
      return turn;
    }, [column]);
  },
};

// Asking -------------------------------------------------------------------------------------------------------------

function busy() {
  if (state.abort) say("A reply is still coming. Escape stops it.");
  return Boolean(state.abort);
}

function send() {
  const text = $("text").value;
  const draws = isDrawing();
  if (!text.trim() && (draws || !waiting.length)) return;
  const add = (replies) => state.talk.add(state.talk.path.at(-1), text, replies, draws ? { draws } : reads() && waiting.length ? { pictures: attached() } : {});
  if (!ask(add)) return;
  $("text").value = "";
  if (draws && waiting.length) say("The model is drawing, from words alone: your pictures wait for the next message.");
}

function ask(add) {
  if (busy()) return false;
  return answer(() => add(state.talk.columns.map(() => [])), state.talk.columns);
}

// Has some columns of a turn answered; `made` gives the turn once the settings are found to be right. Whether they are.
function answer(made, columns) {
  let said;
  try {
    state.talk.settings = read($("form"));
    said = request(state.talk.settings);
  } catch (error) {
    if (!(error instanceof Mistake)) throw error;
    say(error.message);
    return false;
  }
  const turn = made();
  state.follows = true;
  state.abort = new AbortController();
  const runs = columns.map((column) => {
    const model = state.talk.models[column] || state.talk.models[0];
    if (turn.draws) return draws(turn, column, model, said);
    const body = { model, messages: state.talk.messages(column, turn, false), ...said, stream: true, stream_options: { include_usage: true } };
    const step = { ...blank(model), json: Boolean(body.response_format), shown: said.logprobs ? "tokens" : "text" };
    turn.replies[column].push(step);
    state.live.add(step);
    return run(step, body, state.abort.signal);
  });
  store();
  draw();
  working(true);
  say(`${columns.length > 1 ? "The models are" : "The model is"} ${turn.draws ? "drawing" : "replying"}.`);
  Promise.all(runs).then(finished);
  $("text").focus();
  return true;
}

// Drawings instead of a reply.
function draws(turn, column, model, { temperature, top_p, seed }) {
  const { guidance } = state.talk.settings, step = { ...blank(model), draws: DRAWINGS }, began = performance.now();
  const body = { model, prompt: turn.user, n: DRAWINGS, response_format: "url", temperature, top_p, seed, ...(guidance ? { guidance: Number(guidance) } : {}) };
  turn.replies[column].push(step);
  state.live.add(step);
  const ticking = setInterval(() => { step.ms = performance.now() - began; paint(); }, TICK_MS);
  return during(step, async () => {
    const { urls, size, completion } = await drawings(body, state.abort.signal);
    step.drawn = urls.map((url, n) => ({ url, size, alt: `Drawing ${n + 1} of ${turn.user}` }));
    step.usage = { completion, reasoning: 0 };
  }).finally(() => clearInterval(ticking));
}

const run = (step, body, signal) => during(step, async () => {
  for await (const chunk of reply(body, signal)) {
    hear(step, chunk, performance.now());
    paint();
  }
});

// Has something fill a step.
async function during(step, work) {
  const began = performance.now();
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError") step.finish = "stopped";
    else if (error instanceof Failed) step.error = error.message;
    else throw error;
    if (error.status === 401) login(error.message);
  } finally {
    step.ms = performance.now() - began;
    state.live.delete(step);
    store();
  }
  return step;
}

let painting = 0;
function paint() {
  if (painting) return;
  painting = requestAnimationFrame(() => {
    painting = 0;
    for (const [step, view] of state.views) if (state.live.has(step)) view.update(true);
    follow();
    if (performance.now() - state.saved > SAVE_MS) store();
  });
}

function finished(steps) {
  state.abort = null;
  working(false);
  draw();
  const told = (step) => step.error || (step.finish === "stopped" ? "Stopped." : step.calls.length ? `${step.model} calls ${step.calls.map((call) => call.name).join(", ")}.` : step.drawn ? `${step.model} has drawn ${step.drawn.length} pictures.` : `${step.model} has replied.`);
  say(steps.map(told).join(" "));
  const result = document.querySelector(".turn:last-child .answer textarea");
  if (result && document.activeElement === $("text") && !$("text").value) result.focus();
}

function working(is) {
  $("stop").hidden = !is;
  $("send").hidden = is;
}

// Settings -----------------------------------------------------------------------------------------------------------

function checked() {
  const settings = read($("form"));
  for (const [name, reads] of [["tools", toolsOf], ["schema", schemaOf]]) {
    let wrong = "";
    try { reads(settings); } catch (error) { wrong = error.message; }
    $(`${name}-wrong`).textContent = wrong;
    $("form").elements[name].setAttribute("aria-invalid", String(Boolean(wrong)));
  }
  return settings;
}

// On a narrow screen the settings are there alone.
const isShown = () => $("log").getClientRects().length > 0;

function panel(opens) {
  if (isShown()) state.place = scrollY;
  $("settings").hidden = !opens;
  $("open-settings").setAttribute("aria-expanded", String(opens));
  document.body.classList.toggle("set", opens);
  (opens ? $("settings-title") : $("open-settings")).focus({ preventScroll: true });
  scrollTo(0, isShown() ? state.place : 0);
}

$("form").addEventListener("input", (event) => {
  state.talk.settings = checked();
  if (event.target.name === "tools") offer($("form").elements.tool_choice, state.talk.settings);
  if (!state.abort) store();
});
$("form").addEventListener("submit", (event) => event.preventDefault());
$("open-settings").addEventListener("click", () => panel($("settings").hidden));
$("close-settings").addEventListener("click", () => panel(false));
for (const id of ["model", "second"]) {
  $(id).addEventListener("change", () => {
    state.talk.models = [$("model").value, $("second").value];
    store();
    if (!state.abort) draw();
  });
}
$("forget").addEventListener("click", () => { useKey(""); location.reload(); });
$("login").addEventListener("submit", (event) => { event.preventDefault(); useKey($("key").value.trim()); start(); });

// Conversations ------------------------------------------------------------------------------------------------------

function open(talk) {
  if (busy()) return;
  state.follows = true;
  show(talk);
  store();
  $("talks").close();
  $("text").focus();
}

function fresh() {
  const { models: chosen, settings } = state.talk;
  open(new Talk({ models: [...chosen], settings: { ...settings } }));
}

function listed() {
  const rows = all().map((talk) => {
    const remove = make("button", { type: "button", class: "quiet", "aria-label": `Delete ${talk.title}` }, "Delete");
    remove.addEventListener("click", () => {
      if (remove.textContent === "Delete") { remove.textContent = "Really delete"; return; }
      if (talk.id === state.talk.id && busy()) return;
      forget(talk);
      if (talk.id === state.talk.id) show(new Talk({ models: [...state.talk.models], settings: state.talk.settings }));
      listed();
      $("talks-title").focus();
    });
    const current = talk.id === state.talk.id ? "true" : null;
    return make("li", { "aria-current": current }, make("button", { type: "button", class: "quiet title", onclick: () => open(talk) }, talk.title), make("span", { class: "soft" }, new Date(talk.at).toLocaleDateString()), remove);
  });
  $("list").replaceChildren(...(rows.length ? rows : [make("li", { class: "soft" }, "None is kept yet.")]));
}

function exported() {
  const { talk } = state;
  const body = { model: talk.models[0], messages: talk.messages(0), ...request(talk.settings) };
  return talk.columns.length > 1 ? { ...body, compare: { model: talk.models[1], messages: talk.messages(1) } } : body;
}

function fileName(ending) {
  return `${state.talk.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "conversation"}.${ending}`;
}

async function taken(file) {
  if (!file) return;
  try {
    const value = JSON.parse(await file.text()), talk = imported(value);
    Object.assign(talk.settings, settingsOf(value)); // all but `system`
    open(talk);
    $("import-wrong").textContent = "";
  } catch (error) {
    $("import-wrong").textContent = `${file.name}: ${error.message}`;
  }
  $("import").value = "";
}

$("new").addEventListener("click", fresh);
$("open-talks").addEventListener("click", () => { listed(); $("import-wrong").textContent = ""; $("talks").showModal(); });
$("export-json").addEventListener("click", () => {
  try {
    save(fileName("json"), JSON.stringify(exported(), null, 2), "application/json");
  } catch (error) {
    $("import-wrong").textContent = error.message;
  }
});
$("export-markdown").addEventListener("click", () => save(fileName("md"), asMarkdown(state.talk), "text/markdown"));
$("import").addEventListener("change", (event) => taken(event.target.files[0]));

// Keys ---------------------------------------------------------------------------------------------------------------

$("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("stop").addEventListener("click", () => { state.abort?.abort(); $("text").focus(); });
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
addEventListener("keydown", (event) => { if (event.key === "Escape" && !$("talks").open) state.abort?.abort(); });
addEventListener("scroll", () => {
  if (!isShown()) return;
  const isNear = innerHeight + scrollY >= document.documentElement.scrollHeight - NEAR;
  if (isNear || scrollY < state.at) state.follows = isNear; // further down and not near: the page has grown meanwhile
  state.at = scrollY;
}, { passive: true });
addEventListener("resize", () => fit($("log")));
new ResizeObserver(() => { if (isShown()) follow(); }).observe($("log")); // pictures have their size later than their place
$("draw").addEventListener("change", mode);
addEventListener("pagehide", store);
addEventListener("storage", (event) => { // the same conversation went on in another tab
  if (event.key === placeOf(state.talk) && event.newValue && !state.abort) show(fetched(state.talk.id) ?? state.talk);
});
listen(reads);
themed($("theme"), "zifio-chat/theme");
start();
