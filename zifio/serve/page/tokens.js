// Tokens coloured by their probability. What else was likely is told under the mouse, or by the arrow keys.

import { make } from "/shared/make.js";

const LEVELS = [0.9, 0.6, 0.3, 0.1, 0.02];
const level = (logp) => LEVELS.filter((least) => Math.exp(logp) < least).length;

function percent(logp) {
  const share = 100 * Math.exp(logp);
  return share >= 99.95 ? "100 %" : share < 0.01 ? "< 0.01 %" : `${share.toPrecision(share < 1 ? 1 : 3)} %`;
}

// What the colours mean.
export function legend() {
  const shares = [...LEVELS.map((least) => `${100 * least} %`), "less"];
  return make("p", { class: "legend" }, "Probability at least ", ...shares.flatMap((share, n) => [make("span", { class: `token p${n}` }, share), " "]));
}

const named = (text) => (text === "" ? "nothing" : text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣"));

export class Tokens {
  constructor(name) {
    this.told = [];
    this.at = -1;
    this.text = make("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": `${name}: tokens by probability. Arrow keys go from one to the next.` });
    this.tip = make("div", { class: "tip", "aria-live": "polite", hidden: true });
    this.node = make("div", { class: "coloured" }, this.text, this.tip);
    this.text.addEventListener("mouseover", (event) => { if (event.target.dataset.n) this.show(Number(event.target.dataset.n)); });
    this.text.addEventListener("mouseleave", () => this.hide());
    this.text.addEventListener("focus", () => { if (this.text.matches(":focus-visible")) this.show(Math.max(0, this.at)); });
    this.text.addEventListener("blur", () => this.hide());
    this.text.addEventListener("keydown", (event) => this.key(event));
  }

  update(told) {
    for (let n = this.text.childElementCount; n < told.length; n++) {
      const [text, logp] = told[n];
      this.text.append(make("span", { class: `token p${level(logp)}`, "data-n": n }, text.replaceAll("\n", "⏎\n")));
    }
    this.told = told;
  }

  key(event) {
    const to = { ArrowRight: this.at + 1, ArrowLeft: this.at - 1, Home: 0, End: this.told.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.show(Math.min(this.told.length - 1, Math.max(0, to)));
  }

  show(n) {
    const told = this.told[n];
    if (!told) return;
    this.hide();
    const [text, logp, tops] = told, place = this.text.children[n];
    this.at = n;
    place.classList.add("current");
    const row = ([one, its]) => {
      const share = make("i");
      share.style.width = `${100 * Math.exp(its)}%`;
      return make("li", {}, make("code", {}, named(one)), make("span", { class: "share" }, share), make("span", {}, percent(its)));
    };
    const rest = tops.filter(([one]) => one !== text);
    this.tip.replaceChildren(make("p", {}, make("code", {}, named(text)), ` ${percent(logp)}`),
      rest.length ? make("ul", { "aria-label": "Instead" }, ...rest.map(row)) : "");
    this.tip.hidden = false;
    const end = this.node.clientWidth - this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(place.offsetLeft, end))}px`;
    this.tip.style.top = `${place.offsetTop + place.offsetHeight + 4}px`;
  }

  hide() {
    this.text.children[this.at]?.classList.remove("current");
    this.tip.hidden = true;
  }
}
