// Markdown as chat models write it, built as elements: paragraphs, headings, lists, quotes, code, tables, links, formulas.
// Nothing that a model wrote is ever read as HTML, no picture is loaded, and a link goes to http, https or mailto or nowhere.
//
// A text that grows is drawn again from its first changed block on. Every loop ends at once on hostile text: what finds no end
// is remembered, and nothing nests deeper than DEEPEST.

import { make } from "/shared/make.js";
import { FORMULA, formula } from "/shared/maths.js";

const DEEPEST = 12;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const QUOTE = /^ {0,3}>/;
const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^`]*)$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const HEADING = /^ {0,3}(#{1,6})(?: +|$)/;

export function render(element, text) {
  const blocks = split(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"));
  const before = element.drawn ?? [];
  let same = 0;
  while (same < before.length && same < blocks.length && before[same] === blocks[same].source) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  element.append(...blocks.slice(same).map((block) => drawn(block, 0)));
  element.drawn = blocks.map((block) => block.source);
  return element;
}

// Blocks -----------------------------------------------------------------------------------------------------------------

function split(lines) {
  const blocks = [], endless = new Set();
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) { at++; continue; }
    const [kind, end] = block(lines, at, endless);
    const part = lines.slice(at, end);
    blocks.push({ kind, lines: part, source: `${kind}\n${part.join("\n")}` });
    at = end;
  }
  return blocks;
}

// Whether a line ends what a fence began.
function closes(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && !text.replaceAll(fence[0], "");
}

// What begins at a line, and the line behind its end.
function block(lines, at, endless) {
  const line = lines[at];
  const fence = line.match(FENCE);
  if (fence) {
    return ["code", Math.min(lines.length, while_(lines, at + 1, (one) => !closes(one, fence[1])) + 1)];
  }
  if (HEADING.test(line)) return ["heading", at + 1];
  if (RULE.test(line)) return ["rule", at + 1];
  if (QUOTE.test(line)) return ["quote", while_(lines, at, (one) => QUOTE.test(one))];
  if (ITEM.test(line)) return ["list", listEnd(lines, at)];
  if (isTable(lines, at)) return ["table", while_(lines, at, (one) => one.includes("|"))];
  const opening = line.trimStart().slice(0, 2), closing = { "$$": "$$", "\\[": "\\]" }[opening];
  if (closing && !endless.has(closing)) {
    const first = line.indexOf(opening) + 2;
    const end = while_(lines, at, (one, n) => one.indexOf(closing, n === at ? first : 0) < 0);
    if (end < lines.length) return ["paragraph", end + 1];
    endless.add(closing);
  }
  return ["paragraph", while_(lines, at + 1, (one, n) => one.trim() && !interrupts(lines, n))];
}

function while_(lines, at, holds) {
  while (at < lines.length && holds(lines[at], at)) at++;
  return at;
}

function interrupts(lines, at) {
  const line = lines[at], item = line.match(ITEM);
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || isTable(lines, at)
    || (item && line.length > item[0].length && (/^\D/.test(item[2]) || parseInt(item[2]) === 1));
}

const indent = (line) => line.length - line.trimStart().length;
const isOrdered = (item) => /\d/.test(item[2]);

function listEnd(lines, at) {
  const first = lines[at].match(ITEM);
  let blank = false;
  for (let n = at + 1; n < lines.length; n++) {
    const line = lines[n];
    if (!line.trim()) { blank = true; continue; }
    const item = line.match(ITEM), deeper = indent(line) >= first[1].length + 2;
    const another = item && !RULE.test(line) && isOrdered(item) === isOrdered(first);
    if (!deeper && !another && (blank || interrupts(lines, n))) return n;
    blank = false;
  }
  return lines.length;
}

function cells(line) {
  const text = line.trim().replace(/^\|/, "");
  return text.split(/(?<!\\)\|/).slice(0, /(?<!\\)\|$/.test(text) ? -1 : undefined).map((one) => one.trim().replaceAll("\\|", "|"));
}

function isTable(lines, at) {
  const below = lines[at + 1];
  return lines[at].includes("|") && below?.includes("|") && below.includes("-") && cells(below).every((one) => /^:?-+:?$/.test(one));
}

function drawn({ kind, lines }, depth) {
  const text = lines.join("\n");
  if (kind === "code") return code(lines);
  if (kind === "rule") return make("hr");
  if (kind === "table") return table(lines);
  if (kind === "heading") {
    const level = lines[0].match(HEADING)[1].length;
    return make(`h${Math.min(6, level + 2)}`, {}, ...inline(lines[0].replace(HEADING, "").trim()));
  }
  if (depth < DEEPEST && kind === "quote") return make("blockquote", {}, ...inside(lines.map((line) => line.replace(/^ {0,3}> ?/, "")), depth));
  if (depth < DEEPEST && kind === "list") return list(lines, depth);
  return make("p", {}, ...inline(text.trim()));
}

const inside = (lines, depth) => split(lines).map((one) => drawn(one, depth + 1));

function list(lines, depth) {
  const first = lines[0].match(ITEM), items = [];
  for (const line of lines) {
    const item = line.match(ITEM);
    if (item && item[1].length < first[1].length + 2 && !RULE.test(line)) items.push({ wide: item[0].length, lines: [line.slice(item[0].length)] });
    else items.at(-1).lines.push(line.slice(Math.min(indent(line), items.at(-1).wide)));
  }
  const start = isOrdered(first) ? parseInt(first[2]) : 1;
  return make(isOrdered(first) ? "ol" : "ul", { start: start === 1 ? null : start }, ...items.map((item) => {
    item.lines[0] = item.lines[0].replace(/^\[( |x)\] /i, (_, mark) => (mark === " " ? "☐ " : "☑ "));
    const [one, ...rest] = inside(item.lines, depth);
    const tight = one?.tagName === "P" && rest.every((part) => part.tagName !== "P");
    return make("li", {}, ...(one ? (tight ? one.childNodes : [one]) : []), ...rest);
  }));
}

function table(lines) {
  const [head, marks, ...rows] = lines.map(cells);
  const side = marks.map((mark) => (/^:-+:$/.test(mark) ? "centre" : /:$/.test(mark) ? "right" : null));
  const row = (tag, given) => make("tr", {}, ...head.map((_, n) => make(tag, { class: side[n] ?? null, scope: tag === "th" ? "col" : null }, ...inline(given[n] ?? ""))));
  const whole = make("table", {}, make("thead", {}, row("th", head)), make("tbody", {}, ...rows.map((given) => row("td", given))));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, whole);
}

function code(lines) {
  const [, fence, language] = lines[0].match(FENCE);
  const closed = lines.length > 1 && closes(lines.at(-1), fence);
  const pad = indent(lines[0]);
  const inner = lines.slice(1, closed ? -1 : undefined).map((line) => line.slice(Math.min(pad, indent(line))));
  return listing(inner.join("\n"), language.trim().split(" ")[0]);
}

// Code, with its language and a button to copy it.
export function listing(text, language = "", content = [text]) {
  const copy = make("button", { type: "button", class: "quiet", onclick: () => { navigator.clipboard.writeText(text); copy.textContent = "Copied"; } }, "Copy");
  const bar = make("div", { class: "bar" }, make("span", {}, language || "text"), navigator.clipboard ? copy : "");
  return make("div", { class: "listing" }, bar, make("pre", { tabindex: "0" }, make("code", {}, ...content)));
}

// Lines ------------------------------------------------------------------------------------------------------------------

const SPECIAL = /[\\`*_~[<$\n]|!\[|https?:\/\//g;
const HERE = {
  formula: new RegExp(FORMULA.source, "y"),
  link: /(!?)\[((?:[^[\]\\]|\\.){0,1000})\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y,
  address: /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y,
  bare: /https?:\/\/[^\s<>"`]+/y,
  line: /<br *\/?>/iy,
};

function inline(text, inLink = false) {
  const parts = [], ticks = new Set();
  let at = 0;
  const found = (name) => { HERE[name].lastIndex = at; return HERE[name].exec(text); };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    if (next > at) parts.push(text.slice(at, next));
    at = next;
    if (at < text.length) at = special(text, at, parts, found, ticks, inLink);
  }
  return emphasised(parts);
}

// Draws what stands at `at` and gives the place behind it.
function special(text, at, parts, found, ticks, inLink) {
  const here = text[at], put = (part, n) => { parts.push(part); return at + n; };
  let match;
  if ((here === "$" || here === "\\") && (match = found("formula"))) return put(formula(match), match[0].length);
  if (here === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) return put(text[at + 1], 2);
  if (here === "\n") return put(make("br"), 1);
  if (here === "`") {
    const n = runLength(text, at);
    const end = ticks.has(n) ? -1 : tickEnd(text, at + n, n);
    if (end < 0) { ticks.add(n); return put(text.slice(at, at + n), n); }
    const inner = text.slice(at + n, end).replaceAll("\n", " ");
    const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
    return put(make("code", {}, padded ? inner.slice(1, -1) : inner), end + n - at);
  }
  if ((here === "[" || here === "!") && (match = found("link"))) {
    const name = match[2] || match[3];
    const shown = match[1] ? [`${name} (picture)`] : inLink ? [name] : inline(name, true);
    const link = inLink ? null : anchor(match[3], shown);
    return link ? put(link, match[0].length) : put(match[0], match[0].length);
  }
  if (here === "<" && (match = found("line"))) return put(make("br"), match[0].length);
  if (here === "<" && !inLink && (match = found("address"))) return put(anchor(match[1], [match[1].replace(/^mailto:/, "")]) ?? match[0], match[0].length);
  if (here === "h" && !inLink && (match = found("bare"))) {
    const url = trimmed(match[0]);
    return put(anchor(url, [url]) ?? url, url.length);
  }
  if ("*_~".includes(here)) {
    const n = runLength(text, at);
    return put(n > 3 || (here === "~" && n !== 2) ? text.slice(at, at + n) : delimiter(text, at, n), n);
  }
  return put(here, 1);
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end++;
  return end - at;
}

function tickEnd(text, at, n) {
  for (let place = text.indexOf("`", at); place >= 0; place = text.indexOf("`", place)) {
    const run = runLength(text, place);
    if (run === n) return place;
    place += run;
  }
  return -1;
}

// A bare address ends before the sentence does.
function trimmed(url) {
  let end = url.length;
  while (end && (".,;:!?'*_~]".includes(url[end - 1]) || (url[end - 1] === ")" && !url.includes("(")))) end--;
  return url.slice(0, end);
}

function anchor(address, shown) {
  if (!URL.canParse(address) || !["http:", "https:", "mailto:"].includes(new URL(address).protocol)) return null;
  return make("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, ...shown);
}

function delimiter(text, at, n) {
  const before = text[at - 1] ?? " ", after = text[at + n] ?? " ", mark = text[at];
  const blank = /\s/, point = /[\p{P}\p{S}]/u;
  const left = !blank.test(after) && (!point.test(after) || blank.test(before) || point.test(before));
  const right = !blank.test(before) && (!point.test(before) || blank.test(after) || point.test(after));
  const word = mark === "_";
  return { mark, n, opens: left && (!word || !right || point.test(before)), closes: right && (!word || !left || point.test(after)) };
}

// Pairs of marks become em, strong and del; marks without a partner stay as they were written.
function emphasised(parts) {
  const out = [], openers = [];
  for (const part of parts) {
    if (!part.mark) { out.push(part); continue; }
    while (part.closes && part.n) {
      const place = openers.findLastIndex((one) => one.mark === part.mark && (one.mark !== "~" || one.n === part.n));
      if (place < 0) break;
      const opener = openers[place], from = out.indexOf(opener) + 1;
      const inner = out.splice(from).map(written), depth = 1 + Math.max(0, ...inner.map((one) => one.depth ?? 0));
      const n = Math.min(2, opener.n, part.n);
      openers.length = place + 1;
      if (depth > DEEPEST) { out.push(...inner); break; }
      const wrapped = make(part.mark === "~" ? "del" : n === 2 ? "strong" : "em", {}, ...inner);
      wrapped.depth = depth;
      opener.n -= n;
      part.n -= n;
      if (!opener.n) { openers.pop(); out.pop(); }
      out.push(wrapped);
    }
    if (!part.n) continue;
    out.push(part);
    if (part.opens) openers.push(part);
    if (openers.length > 100) openers.shift();
  }
  return out.map(written);
}

const written = (part) => (part.mark ? part.mark.repeat(part.n) : part);
