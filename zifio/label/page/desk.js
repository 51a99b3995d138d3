// The desk: which item is before you, what the keys do, what is sent. Everything that matters is in localStorage until the
// desk has it: the draft of an item, and the outbox.

import { $, make, say, themed } from "/shared/make.js";
import { fit } from "/shared/maths.js";
import { ItemForm, letter, told } from "./item.js";
import { call, freshKey, takeToken, useToken } from "./net.js";
import { Outbox } from "./outbox.js";

const AHEAD = 5; // items fetched in advance, so that work goes on without a connection
const VERDICT_MS = 120000; // the first verdict waits for the verifier to start
const REVEAL_MS = 4000; // how long to wait for the machine's label before going on
const IDLE_MS = 60000; // a longer pause is no time spent on an item
const KEPT = 20; // labels that can be undone

const state = {
  me: null, outbox: null, queue: [], form: null, item: null, phase: "blind", settling: false, done: new Set(), history: [],
  ms: 0, since: 0, revealed: null, filling: null, ended: "",
};

const named = (what) => `zifio-desk/${state.me.id}/${what}`;
const place = (phase, id) => `${phase === "adjudication"}/${id}`; // an adjudicator may have labelled the item before

// Start --------------------------------------------------------------------------------------------------------------

async function start() {
  takeToken();
  themed($("theme"), "zifio-desk/theme");
  try {
    state.me = await call("/api/me");
  } catch (error) {
    if (error.status === 401) return login();
    say(`${error.message} Trying again.`);
    setTimeout(start, 2000);
    return;
  }
  state.outbox = new Outbox(state.me.id, standing, refused);
  state.history = JSON.parse(localStorage.getItem(named("history")) ?? "[]");
  for (const one of state.outbox.entries()) if (one.body.item) state.done.add(place(one.body.phase, one.body.item));
  progress(state.me);
  setInterval(progress, 15000);
  await next();
}

function login() {
  const token = make("input", { id: "token", autocomplete: "off", required: true });
  const form = make("form", {
    onsubmit: (event) => { event.preventDefault(); useToken(token.value); location.reload(); },
  }, make("h2", {}, "Your token"), make("label", { for: "token" }, "Paste the token that you were given, or open its link."),
    token, make("div", { class: "does" }, make("button", { class: "first" }, "Open the desk")));
  $("count").textContent = "Not logged in";
  $("work").replaceChildren(form);
  token.focus();
}

async function progress(now = null) {
  try {
    now ??= await call("/api/me");
    const open = now.n_disputed ? `, ${now.n_disputed} disputed` : "";
    $("count").textContent = `${now.n_done} of ${now.n_items} done${open}; ${now.n_mine} by you`;
    $("mode").hidden = !(state.me.adjudicates && (now.n_disputed || state.settling));
    $("progress").max = Math.max(1, now.n_items);
    $("progress").value = now.n_done;
  } catch { /* the outbox tells of a lost connection */ }
  standing();
}

function standing() {
  const waiting = state.outbox?.waiting ?? 0;
  const labels = waiting === 1 ? "1 entry waits" : `${waiting} entries wait`;
  const lost = state.outbox && !state.outbox.online;
  $("net").textContent = lost ? `Offline. ${labels} in this browser.` : waiting > 2 ? `${labels} to be sent.` : "";
  $("undo").disabled = !state.history.length;
}

// What the desk will never take stays here to be read, and is told.
function refused(entry, error) {
  const kept = JSON.parse(localStorage.getItem(named("refused")) ?? "[]");
  localStorage.setItem(named("refused"), JSON.stringify([...kept, { ...entry, why: error.message }]));
  say(`The desk did not take a label: ${error.message} It is kept in this browser.`);
}

// The next item ------------------------------------------------------------------------------------------------------

function refill() {
  state.filling ??= fetchMore().finally(() => { state.filling = null; });
  return state.filling;
}

async function fetchMore() {
  const settling = state.settling;
  try {
    const found = await call(settling ? "/api/disputed" : "/api/next", { n: AHEAD });
    if (settling !== state.settling) return fetchMore(); // the mode was changed meanwhile
    const phase = settling ? "adjudication" : "blind";
    const here = new Set([...state.queue.map((item) => item.id), state.item?.id]);
    state.queue.push(...found.items.filter((item) => !here.has(item.id) && !state.done.has(place(phase, item.id))));
    state.ended = found.screened_out ? "Thank you. The first items did not go well enough to go on; ask who runs this desk." : "";
  } catch (error) {
    state.ended = error.status ? error.message : "The desk is not reached. Your labels are kept and will be sent.";
    if (error.again) setTimeout(() => { if (!state.item) next(); }, 2000);
  }
}

async function next() {
  state.item = state.form = null;
  if (!state.queue.length) {
    await state.outbox.flush();
    await refill();
  }
  const item = state.queue.shift();
  if (!item) return nothing();
  show(item, state.settling ? "adjudication" : "blind");
  if (state.queue.length < 3) refill();
}

function nothing() {
  const text = state.ended || (state.settling ? "No disputes are left." : "Nothing is left for you to label now.");
  const again = make("button", { class: "first", onclick: next }, "Look again");
  $("work").replaceChildren(make("p", { id: "nothing" }, text), make("div", { class: "does" }, again));
  again.focus();
  progress();
}

function show(item, phase, said = null) {
  const draft = JSON.parse(localStorage.getItem(named(`draft/${phase}/${item.id}`)) ?? "null");
  Object.assign(state, { item, phase, revealed: null, ms: draft?.ms ?? 0, since: performance.now() });
  state.form = new ItemForm(item, said ?? draft?.said, save);
  const verdict = make("div", { id: "verdict", class: "panel", role: "status", hidden: true });
  const asks = item.asks === "always" || (item.asks === "after" && phase !== "blind");
  const buttons = make("div", { class: "does" },
    make("button", { id: "submit", class: "first", onclick: () => submit() }, "Submit ", make("kbd", {}, "Enter")),
    make("button", { onclick: () => submit("bad_problem") }, "Bad problem ", make("kbd", {}, "B")),
    phase === "blind" ? make("button", { onclick: () => submit("give_up") }, "Give up ", make("kbd", {}, "G")) : "",
    asks ? make("button", { id: "ask", onclick: ask }, "Verdict ", make("kbd", {}, "V")) : "");
  const takes = (item.opinions ?? []).map((one, n) =>
    make("button", { onclick: () => take(n) }, `Start from ${letter(n)} `, make("kbd", {}, `Shift+${letter(n)}`)));
  const heads = item.opinions ? [panel("What others said", item.opinions.map((one, n) => `${letter(n)}: ${told(item, one)}`), takes)] : [];
  $("work").replaceChildren(...heads, state.form.element, verdict, buttons);
  fit($("work"));
  scrollTo(0, 0);
  if (item.kind === "steps") state.form.move(0);
  else $("work").focus();
  standing();
}

function panel(title, lines, buttons = []) {
  return make("section", { class: "panel", "aria-label": title }, make("h2", {}, title),
    make("ul", {}, ...lines.map((line) => make("li", {}, line))), make("div", { class: "does" }, ...buttons));
}

function spend() {
  const now = performance.now();
  state.ms += Math.min(IDLE_MS, Math.max(0, now - state.since));
  state.since = now;
}

function save() {
  spend();
  const name = named(`draft/${state.phase}/${state.item.id}`);
  localStorage.setItem(name, JSON.stringify({ said: state.form.said, ms: state.ms }));
}

// What is sent -------------------------------------------------------------------------------------------------------

async function submit(finish = null) {
  const { item, form, phase } = state;
  if (!item || !form) return;
  const missing = finish ? "" : form.missing();
  if (missing) return say(missing);
  spend();
  const said = form.judgement(finish);
  const key = freshKey();
  const answer = state.outbox.put("/api/label", { key, item: item.id, said, ms: Math.round(state.ms), phase });
  localStorage.removeItem(named(`draft/${phase}/${item.id}`));
  remember({ key, item, phase, said: form.said });
  state.done.add(place(phase, item.id));
  say("Kept.");
  if (phase === "blind" && item.reveals && state.outbox.online) {
    state.form = null;
    const wait = new Promise((resolve) => setTimeout(resolve, REVEAL_MS));
    const machine = (await Promise.race([answer, wait]))?.prelabel;
    if (state.item !== item || state.form) return; // undone meanwhile: still blind
    if (machine) return reveal(item, said, machine);
  }
  await next();
}

function remember(one) {
  state.history = [...state.history, one].slice(-KEPT);
  localStorage.setItem(named("history"), JSON.stringify(state.history));
  standing();
}

function reveal(item, mine, machine) {
  state.revealed = { item, mine };
  const same = told(item, mine) === told(item, machine);
  const on = make("button", { class: "first", onclick: next }, "Next ", make("kbd", {}, "Enter"));
  const again = make("button", { onclick: revise }, "Revise ", make("kbd", {}, "R"));
  const title = same ? "The machine says the same" : "The machine says something else";
  const shown = new ItemForm({ ...item, opinions: [mine, machine] }, mine, () => {});
  for (const one of shown.element.querySelectorAll("input, textarea")) one.disabled = true;
  $("work").replaceChildren(panel(title, [`A, you: ${told(item, mine)}`, `B, machine: ${told(item, machine)}`], [on, again]), shown.element);
  fit($("work"));
  scrollTo(0, 0);
  on.focus();
}

function revise() {
  const { item, mine } = state.revealed;
  show(item, "revised", mine);
  say("Revise your label. What you said before is kept beside it.");
}

function undo() {
  const last = state.history.pop();
  if (!last) return say("There is nothing to undo.");
  localStorage.setItem(named("history"), JSON.stringify(state.history));
  state.outbox.put("/api/undo", { key: freshKey(), label: last.key });
  if (state.item && state.form && state.item.id !== last.item.id) state.queue.unshift(state.item);
  state.done.delete(place(last.phase, last.item.id));
  state.queue = state.queue.filter((item) => item.id !== last.item.id);
  show(last.item, last.phase, last.said);
  say("Taken back: this is the item before.");
}

async function ask() {
  const { item } = state;
  const answer = $("verdict");
  if (!answer || !$("ask")) return;
  answer.hidden = false;
  answer.textContent = "Asking the verifier.";
  try {
    const found = await call("/api/verdict", { item: item.id }, VERDICT_MS);
    if (state.item !== item) return;
    const parts = [`The verifier says: ${found.outcome}.`];
    if (found.gold) parts.push(`The right answer is ${found.gold}.`);
    if (found.reason) parts.push(`(${found.reason})`);
    answer.textContent = parts.join(" ");
  } catch (error) {
    answer.textContent = error.message;
  }
}

function take(number) {
  const opinion = state.item.opinions?.[number];
  if (!opinion) return;
  const blank = opinion.finish === "bad_problem" ? {} : opinion;
  show(state.item, state.phase, blank);
  save();
  say(`Begun with what ${letter(number)} said.`);
}

// Keys ---------------------------------------------------------------------------------------------------------------

const RATINGS = { 1: 1, "+": 1, 2: 0, 0: 0, 3: -1, "-": -1 };
const VALUES = {
  answer: { 1: "right", "+": "right", 2: "unsure", 0: "unsure", 3: "wrong", "-": "wrong" },
  pair: { 1: "a", 2: "b", 3: "tie", 4: "both_bad" },
};
const LETTERS = {
  a: () => state.form.allGood(),
  b: () => submit("bad_problem"),
  g: () => { if (state.phase === "blind") submit("give_up"); },
  c: () => $("correction").focus(),
  n: () => $("note").focus(),
  f: () => $("flagged").click(),
  v: ask,
};

function key(event) {
  if ($("help").open || event.altKey || event.metaKey) return;
  const writing = event.target.matches("textarea, input:not([type=radio]):not([type=checkbox])");
  if (writing) {
    if (event.key === "Escape") {
      event.target.blur();
      state.form?.move(0);
    } else if (!(event.key === "Enter" && event.ctrlKey)) return;
  }
  if (event.key === "Enter") {
    if (event.target.matches("button, a, summary, #token")) return;
    event.preventDefault();
    return state.revealed && !state.form ? next() : submit();
  }
  if (event.ctrlKey || !$("keys-on").checked || writing) return;
  if (single(event)) event.preventDefault();
}

// What a single key does; whether it did anything.
function single(event) {
  const { form, item } = state;
  if (event.key === "?") return $("help").showModal(), true;
  if (event.key.toLowerCase() === "u") return undo(), true;
  if (state.revealed && !form) return event.key.toLowerCase() === "r" && (revise(), true);
  if (!form) return false;
  if (event.shiftKey && item.opinions && /^[A-Z]$/.test(event.key)) return take(event.key.charCodeAt(0) - 65), true;
  if (item.kind === "steps") {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (event.target.matches("input[type=radio]")) return false; // the browser's own: another mark
      return form.move(event.key === "ArrowDown" ? 1 : -1), true;
    }
    if (event.key in RATINGS) return say(form.rate(form.at, RATINGS[event.key], true)), true;
  } else if (event.key in VALUES[item.kind]) return say(told(item, { value: form.choose(VALUES[item.kind][event.key]) })), true;
  const does = LETTERS[event.key.toLowerCase()];
  if (!does || (event.key.toLowerCase() === "a" && item.kind !== "steps")) return false;
  does();
  return true;
}

// Looks --------------------------------------------------------------------------------------------------------------

$("undo").addEventListener("click", undo);
$("open-help").addEventListener("click", () => $("help").showModal());
$("mode").addEventListener("click", () => {
  state.settling = !state.settling;
  $("mode").setAttribute("aria-pressed", String(state.settling));
  state.queue = [];
  next();
});
addEventListener("keydown", key);
addEventListener("resize", () => fit($("work")));
addEventListener("beforeunload", () => { if (state.form) save(); });
start();
