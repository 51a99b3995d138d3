// One item as a form: rows (steps and alternatives) or a choice, what may be written beside it, and the judgement so far.

import { make } from "/shared/make.js";
import { fill } from "/shared/maths.js";

const MARKS = [[1, "+", "Good", "good"], [0, "0", "Neutral", "neutral"], [-1, "−", "Wrong", "bad"]];
const CHOICES = {
  answer: [["right", "1", "Right", "good"], ["unsure", "2", "Unsure", "neutral"], ["wrong", "3", "Wrong", "bad"]],
  pair: [["a", "1", "First is better", "good"], ["b", "2", "Second is better", "good"], ["tie", "3", "Tie", "neutral"],
    ["both_bad", "4", "Both bad", "bad"]],
};
const SPOKEN = { 1: "good", 0: "neutral", "-1": "wrong", null: "not judged", undefined: "not judged" };
const WORDS = { a: "first is better", b: "second is better", both_bad: "both bad", bad_problem: "bad problem", give_up: "gives up" };

// A step as it is read: without the marks that part thinking from answer, and without the line ends between steps.
function plain(text) {
  return text.replace(/<\/?(?:think|answer)>/g, " ").trim() || text;
}

export function letter(number) {
  return String.fromCharCode(65 + number);
}

// In words, for a list of who said what.
export function told(item, said) {
  const parts = [];
  if (said.finish === "bad_problem" || said.finish === "give_up") parts.push(WORDS[said.finish]);
  else if (item.kind === "steps") {
    const wrong = said.ratings.indexOf(-1);
    parts.push(wrong < 0 ? "no error" : `first error in step ${wrong + 1}`);
  } else parts.push(WORDS[said.value] ?? said.value);
  if (said.correction) parts.push(`correction: ${said.correction}`);
  if (said.note) parts.push(`note: ${said.note}`);
  return parts.join("; ");
}

export class ItemForm {
  // changed(): after every change, for autosave. said: a judgement to begin with.
  constructor(item, said, changed) {
    this.item = item;
    this.changed = changed;
    this.rows = [];
    this.at = 0;
    this.said = { ratings: [], alternatives: [], value: null, correction: "", flagged: false, note: "", ...said };
    this.element = make("div", { class: "item" }, this.prompt(), this.body(), this.extras());
    this.restore();
  }

  prompt() {
    const title = make("h2", {}, "Problem");
    return make("section", { class: "prompt" }, title, fill(make("div", { class: "words" }), this.item.prompt));
  }

  body() {
    const { item } = this;
    if (item.kind === "steps") return this.steps();
    const replies = item.kind === "pair" ? [["First", item.a], ["Second", item.b]] : [["Answer", item.response]];
    const shown = replies.map(([name, text]) =>
      make("section", { class: "reply" }, make("h2", {}, name), fill(make("div", { class: "words" }), text)));
    const choices = CHOICES[item.kind].map(([value, key, name, look]) => this.radio("value", value, key, name, look));
    this.choices = make("fieldset", { class: "row choice" }, make("legend", {}, "Your label"), make("div", { class: "marks" }, ...choices));
    const opinions = this.opinions((said) => told(item, said));
    return make("div", {}, make("div", { class: "replies" }, ...shown), this.choices, ...opinions);
  }

  steps() {
    const list = make("ol", { class: "rows" });
    this.item.steps.forEach((text, step) => {
      const row = this.row(`Step ${step + 1}`, text, step, null);
      const others = this.item.alternatives[step] ?? [];
      if (others.length) {
        const inner = make("ul", { class: "rows", "aria-label": `Alternatives to step ${step + 1}` });
        others.forEach((other, n) => inner.append(this.row(`Instead ${n + 1}`, other, step, n)));
        row.append(inner);
      }
      list.append(row);
    });
    const section = make("section", { "aria-label": "Solution" }, list);
    if (this.item.answer) section.append(fill(make("p", { class: "words" }, "Answer: "), this.item.answer));
    return section;
  }

  row(name, text, step, alternative) {
    const number = this.rows.length;
    const marks = MARKS.map(([value, key, word, look]) => this.radio(`row-${number}`, value, key, word, look));
    const said = alternative === null ? this.opinions((one) => SPOKEN[one.ratings?.[step]]) : [];
    const fieldset = make("fieldset", {}, make("legend", {}, name), fill(make("div", { class: "words" }), plain(text)),
      make("div", { class: "marks" }, ...marks), ...said);
    const element = make("li", { class: "row", tabindex: "-1", onfocusin: () => this.point(number) }, fieldset);
    if (alternative !== null) element.addEventListener("focusin", (event) => event.stopPropagation());
    this.rows.push({ element, fieldset, step, alternative, name });
    return element;
  }

  radio(group, value, key, word, look) {
    const input = make("input", { type: "radio", name: group, value, onchange: () => this.chosen(group, value) });
    return make("label", { class: `mark ${look}` }, input, make("kbd", { "aria-hidden": "true" }, key), word);
  }

  opinions(say) {
    const all = this.item.opinions ?? [];
    return all.length ? [make("p", { class: "said" }, all.map((said, n) => `${letter(n)}: ${say(said)}`).join(" · "))] : [];
  }

  extras() {
    this.correction = make("textarea", { id: "correction", rows: "2", oninput: () => this.write("correction") });
    this.note = make("textarea", { id: "note", rows: "2", oninput: () => this.write("note") });
    this.flag = make("input", { type: "checkbox", id: "flagged", onchange: () => this.write("flagged") });
    const what = this.item.kind === "steps" ? "The first wrong step, put right" : "What would be right";
    const correction = make("div", {}, make("label", { for: "correction" }, `${what} `, make("kbd", {}, "C")), this.correction);
    const note = make("div", {}, make("label", { for: "note" }, "Note ", make("kbd", {}, "N")), this.note);
    const flag = make("label", {}, this.flag, " Somebody should look at this ", make("kbd", {}, "F"));
    return make("div", { class: "more" }, correction, note, make("div", {}, flag));
  }

  write(name) {
    if (name === "flagged") this.said.flagged = this.flag.checked;
    else this.said[name] = this[name].value.toWellFormed?.() ?? this[name].value;
    this.changed();
  }

  // Show what is said so far.
  restore() {
    const { said } = this;
    this.rows.forEach((row) => this.tick(row.fieldset, this.rating(row)));
    if (this.choices) this.tick(this.choices, said.value);
    this.correction.value = said.correction;
    this.note.value = said.note;
    this.flag.checked = said.flagged;
    this.limit();
    const first = this.rows.findIndex((row) => this.open(row) && this.rating(row) === null);
    this.point(Math.max(0, first));
  }

  tick(fieldset, value) {
    for (const input of fieldset.querySelectorAll(":scope > .marks input")) input.checked = input.value === String(value);
  }

  rating(row) {
    if (row.alternative === null) return this.said.ratings[row.step] ?? null;
    return this.said.alternatives[row.step]?.[row.alternative] ?? null;
  }

  chosen(group, value) {
    if (group === "value") this.said.value = value;
    else this.rate(Number(group.slice(4)), value, false);
    this.changed();
  }

  get firstError() {
    return this.said.ratings.indexOf(-1);
  }

  // Whether a row may be judged: with stop = first_error nothing behind the first wrong step is.
  open(row) {
    const wrong = this.firstError;
    return this.item.stop === "every" || wrong < 0 || row.step <= wrong;
  }

  limit() {
    for (const row of this.rows) {
      const open = this.open(row);
      row.element.classList.toggle("past", !open);
      for (const input of row.fieldset.querySelectorAll(":scope > .marks input")) input.disabled = !open;
    }
  }

  rate(number, value, moves) {
    const row = this.rows[number];
    if (!row || !this.open(row)) return "";
    const { steps, alternatives } = this.item;
    if (row.alternative === null) {
      this.said.ratings = steps.map((_, step) => (step === row.step ? value : this.said.ratings[step] ?? null));
      if (this.item.stop === "first_error" && value === -1) {
        this.said.ratings = this.said.ratings.map((one, step) => (step > row.step ? null : one));
        this.rows.filter((one) => one.step > row.step).forEach((one) => this.tick(one.fieldset, null));
      }
    } else {
      this.said.alternatives = steps.map((_, step) => (alternatives[step] ?? []).map((_, n) =>
        step === row.step && n === row.alternative ? value : this.said.alternatives[step]?.[n] ?? null));
    }
    this.tick(row.fieldset, value);
    this.limit();
    if (moves) this.move(1, true);
    this.changed();
    return `${row.name}: ${SPOKEN[value]}`;
  }

  allGood() {
    for (const [number, row] of this.rows.entries()) {
      if (row.alternative === null && this.open(row) && this.rating(row) === null) this.rate(number, 1, false);
    }
    this.move(0);
  }

  choose(value) {
    this.said.value = value;
    this.tick(this.choices, value);
    this.changed();
    return value;
  }

  // To the next row that may be judged; to one without a mark if there is one.
  move(by, unmarked = false) {
    let to = this.at + by;
    const rest = this.rows.findIndex((row, number) => number > this.at && this.open(row) && this.rating(row) === null);
    if (unmarked && rest >= 0) to = rest;
    const last = this.rows.findLastIndex((row) => this.open(row));
    to = Math.min(Math.max(0, to), Math.max(0, last));
    this.point(to);
    this.rows[to]?.element.focus();
  }

  point(number) {
    this.at = number;
    this.rows.forEach((row, one) => {
      if (one === number) row.element.setAttribute("aria-current", "step");
      else row.element.removeAttribute("aria-current");
    });
  }

  // What is still missing, in words; "" when the judgement is whole.
  missing() {
    if (this.item.kind !== "steps") return this.said.value ? "" : "Say what it is first.";
    const row = this.rows.find((one) => one.alternative === null && this.open(one) && this.rating(one) === null);
    return row ? `${row.name} has no mark yet.` : "";
  }

  // What is sent; `finish` as given where it is not told by the marks.
  judgement(finish = null) {
    const { said, item } = this;
    const beside = { correction: said.correction, flagged: said.flagged, note: said.note };
    if (finish) return { finish, ...beside };
    if (item.kind !== "steps") return { finish: "solution", value: said.value, ...beside };
    const rated = said.alternatives.flat().some((one) => one !== null);
    return {
      finish: this.firstError < 0 ? "solution" : "found_error",
      ratings: item.steps.map((_, step) => said.ratings[step] ?? null),
      ...(rated ? { alternatives: said.alternatives } : {}),
      ...beside,
    };
  }
}
