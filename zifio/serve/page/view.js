// How a conversation looks: what was said, the replies with their thinking folded apart, calls, tokens, and what can be done.

import { make } from "/shared/make.js";
import { drawing, image } from "./pictures.js";
import { listing, render } from "./markdown.js";
import { legend, Tokens } from "./tokens.js";

const seconds = (ms) => `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`;
const counted = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const button = (name, onclick, given = {}) => make("button", { type: "button", class: "quiet", onclick, ...given }, name);

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return null;
  }
}

// JSON as code, its keys told from its values.
function jsonListing(text) {
  const shown = pretty(text) ?? text;
  const parts = shown.split(/("(?:[^"\\]|\\.)*"(?=:))/).map((part, n) => (n % 2 ? make("b", {}, part) : part));
  return listing(shown, "json", parts);
}

// One message of the assistant; `update` draws what has come meanwhile.
export class Reply {
  constructor(step, asked, acts) {
    const { opened } = acts;
    Object.assign(this, { step, asked, acts });
    this.summary = make("summary");
    this.thought = make("div", { class: "md" });
    this.thinking = make("details", { class: "thinking", open: opened.thinking, hidden: true }, this.summary, this.thought);
    this.summary.addEventListener("click", () => { opened.thinking = !this.thinking.open; });
    this.said = make("div", { class: "md" });
    this.legend = legend();
    this.drawn = make("div", { class: "pictures" });
    this.calls = make("div", { class: "calls" });
    this.error = make("p", { class: "error", hidden: true });
    this.facts = make("p", { class: "facts" });
    this.node = make("article", { class: "reply" }, make("h3", { class: "who" }, step.model || "Assistant"), this.thinking, this.said, this.drawn, this.legend, this.calls, this.error, this.facts);
    this.coloured = {};
  }

  get hasTokens() {
    return Object.values(this.step.tokens).some((told) => told.length);
  }

  update(isLive) {
    const { step } = this;
    this.node.classList.toggle("live", isLive && !step.content && !step.calls.length && !step.draws);
    this.thinking.hidden = !step.reasoning;
    this.summary.textContent = this.summarised(isLive);
    this.draw("reasoning", this.thought);
    this.draw("content", this.said);
    for (const call of step.calls.slice(this.calls.childElementCount)) {
      this.calls.append(make("section", { class: "call", "aria-label": `Call of ${call.name}` }, make("p", {}, "Calls ", make("strong", {}, call.name)), jsonListing(call.arguments)));
    }
    this.drawings(isLive);
    this.error.hidden = !step.error;
    this.error.textContent = step.error;
    this.facts.textContent = isLive ? (step.draws ? `Drawing, ${seconds(step.ms ?? 0)}` : "") : this.told();
  }

  // What was drawn, or places for what is being drawn.
  drawings(isLive) {
    const { step, drawn } = this;
    if (drawn.childElementCount) return;
    if (step.drawn) drawn.append(...step.drawn.map((picture, n) => drawing(picture, n + 1, this.asked, this.acts.use())));
    else if (isLive && step.draws) drawn.append(...Array.from({ length: step.draws }, () => make("span", { class: "empty", "aria-hidden": "true" })));
  }

  draw(kind, place) {
    const { step } = this, text = step[kind];
    const isColoured = step.shown === "tokens" && step.tokens[kind].length > 0;
    if (kind === "content") this.legend.hidden = step.shown !== "tokens" || !this.hasTokens;
    if (isColoured) {
      this.coloured[kind] ??= new Tokens(kind === "content" ? "Reply" : "Thinking");
      if (place.firstChild !== this.coloured[kind].node) place.replaceChildren(this.coloured[kind].node);
      place.drawn = undefined;
      this.coloured[kind].update(step.tokens[kind]);
    } else if (kind === "content" && step.json && text) {
      place.drawn = undefined;
      place.replaceChildren(jsonListing(text));
    } else {
      if (!place.drawn) place.replaceChildren();
      render(place, text);
    }
  }

  summarised(isLive) {
    const { step } = this, time = step.thinks === undefined ? "" : seconds(step.thinks);
    if (isLive && !step.hasThought) return `Thinking, ${time}`;
    const n = step.usage?.reasoning ?? step.tokens.reasoning.length;
    const tokens = n ? counted(n, "token") : step.pieces ? `about ${counted(step.pieces, "token")}` : "";
    return [time ? `Thought for ${time}` : "Thinking", tokens].filter(Boolean).join(", ");
  }

  told() {
    const { step } = this, n = step.usage?.completion;
    const ended = { length: "cut at its most tokens", stopped: "stopped" }[step.finish];
    const rate = n && step.ms > 0 ? `${Math.round(n / (step.ms / 1000))} tokens/s` : "";
    return [n === undefined ? "" : counted(n, "token"), step.ms === undefined ? "" : seconds(step.ms), rate, ended].filter(Boolean).join(" · ");
  }
}

// A turn: what the user said, and a column for each model. `live`: the steps that are still coming; views go into `views`.
export function turnView(talk, turn, acts, live, views) {
  const beside = talk.beside(turn), place = beside.indexOf(turn);
  const go = (by, name, sign) => button(sign, () => acts.choose(beside[place + by]), { id: `${name}-${turn.id}`, "aria-label": `${name} version`, disabled: !beside[place + by] });
  const versions = beside.length > 1 ? [go(-1, "Previous", "‹"), make("span", { class: "count" }, `${place + 1} of ${beside.length}`), go(1, "Next", "›")] : [];
  const mine = make("article", { class: "mine" }, make("h2", { class: "who hide" }, "You"), make("div", { class: "pictures" }, ...(turn.pictures ?? []).map(image)), make("div", { class: "words" }, turn.user));
  const does = make("div", { class: "does" }, button("Edit", () => edit(mine, does, turn.user, (text) => acts.edit(turn, text)), { "aria-label": "Edit your message" }), ...versions);
  const columns = turn.replies.map((steps, column) => columnView(turn, steps, column, acts, live, views));
  return make("section", { class: "turn", "aria-label": `Turn ${talk.path.indexOf(turn) + 1}` }, mine, does,
    make("div", { class: columns.length > 1 ? "columns two" : "columns" }, ...columns));
}

function edit(mine, does, text, done) {
  const area = make("textarea", { "aria-label": "Your message", rows: "2" });
  const form = make("form", { class: "edit" }, area, make("div", { class: "row" }, make("button", { class: "first" }, "Send"), button("Cancel", () => close())));
  const close = () => { form.replaceWith(mine); does.hidden = false; does.firstChild.focus(); };
  form.addEventListener("submit", (event) => { event.preventDefault(); done(area.value); });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); close(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target === area) { event.preventDefault(); form.requestSubmit(); }
  });
  area.value = text;
  mine.replaceWith(form);
  does.hidden = true;
  area.focus();
}

function columnView(turn, steps, column, acts, live, views) {
  const nodes = [];
  for (const step of steps) {
    if (step.role === "tool") {
      nodes.push(make("section", { class: "result", "aria-label": "Result" }, make("p", {}, "Result"), pretty(step.content) === null ? listing(step.content) : jsonListing(step.content)));
      continue;
    }
    const isLive = live.has(step), view = new Reply(step, turn.user, acts);
    views.set(step, view);
    view.update(isLive);
    nodes.push(view.node);
    if (!isLive) view.node.append(replyDoes(view, turn, column, acts, step === steps.at(-1)));
  }
  const last = steps.at(-1);
  if (last?.calls?.length && !live.has(last)) nodes.push(resultForm(last.calls, (contents) => acts.results(turn, column, contents)));
  return make("div", { class: "column" }, ...nodes);
}

function replyDoes(view, turn, column, acts, isLast) {
  const { step } = view;
  const copy = button("Copy", () => navigator.clipboard.writeText(step.content).then(() => acts.say("Copied.")));
  const colours = button("Probabilities", () => {
    step.shown = step.shown === "tokens" ? "text" : "tokens";
    colours.setAttribute("aria-pressed", String(step.shown === "tokens"));
    view.update(false);
    acts.save();
  }, { "aria-pressed": String(step.shown === "tokens") });
  return make("div", { class: "does" }, navigator.clipboard && step.content ? copy : "", isLast ? button("Regenerate", () => acts.regenerate(turn, column)) : "", view.hasTokens ? colours : "");
}

function resultForm(calls, send) {
  const areas = calls.map((call) => make("textarea", { rows: "2", class: "code", "aria-label": `Result of ${call.name}` }));
  const form = make("form", { class: "answer" },
    ...calls.map((call, n) => make("label", {}, make("span", {}, "Result of ", make("strong", {}, call.name)), areas[n])),
    make("div", { class: "row" }, make("button", { class: "first" }, calls.length > 1 ? "Send results" : "Send result")));
  form.addEventListener("submit", (event) => { event.preventDefault(); send(areas.map((area) => area.value)); });
  return form;
}
