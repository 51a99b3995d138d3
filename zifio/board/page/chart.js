// A chart as SVG: curves over steps, bands behind them, a cursor that mouse and arrow keys move.

const NS = "http://www.w3.org/2000/svg";
const WIDE = 460, HIGH = 150, LEFT = 46, RIGHT = 8, TOP = 6, BOTTOM = 18;
const DASHES = ["", " second", " third"];

export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function number(value, percent) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (percent) return `${(100 * value).toFixed(value > 0 && (value < 0.0995 || (value > 0.9905 && value < 0.9995)) ? 1 : 0)} %`;
  const size = Math.abs(value);
  if (size >= 1e6) return value.toExponential(1).replace("e+", "e");
  if (size >= 100) return Math.round(value).toLocaleString("en");
  return size === 0 ? "0" : size >= 0.01 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

// Round numbers between two ends, about so many.
function ticks(low, high, about) {
  const raw = (high - low) / about, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * size).find((n) => n >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step * 1e-6 ? 0 : at);
  return found;
}

function ends(values, percent) {
  let low = Infinity, high = -Infinity;
  for (const several of values) for (const value of several) { if (value < low) low = value; if (value > high) high = value; }
  if (percent) return [Math.min(0, low), Math.max(1, high)];
  if (low === high) { low -= Math.abs(low) * 0.1 || 0.5; high += Math.abs(high) * 0.1 || 0.5; }
  const room = (high - low) * 0.05;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

export function smoothed(values) {
  const width = Math.max(1, Math.floor(values.length / 25)), out = [];
  let sum = 0;
  for (let n = 0; n < values.length; n++) {
    sum += values[n];
    if (n >= width) sum -= values[n - width];
    out.push(sum / Math.min(n + 1, width));
  }
  return out;
}

// The index of the last step that is not beyond `step`; -1 where all are.
export function upTo(steps, step) {
  let low = 0, high = steps.length;
  while (low < high) { const middle = (low + high) >> 1; if (steps[middle] <= step) low = middle + 1; else high = middle; }
  return low - 1;
}

// `panels`: [{keys, names, percent, curves: [{run, key, x, y, look}], bands: [{x, low, high, look}]}], drawn one below another.
export class Chart {
  constructor(title, told) {
    this.told = told;
    this.caption = document.createElement("figcaption");
    this.heading = document.createElement("h3");
    this.heading.textContent = title;
    this.svg = svg("svg", { role: "img", tabindex: "0", "aria-label": title });
    this.node = document.createElement("figure");
    this.node.append(this.heading, this.svg, this.caption);
    this.panels = [];
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.move(null));
    this.svg.addEventListener("blur", () => this.move(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }

  draw(panels, summary) {
    this.panels = panels;
    const xs = panels.flatMap((panel) => [...panel.curves, ...panel.bands].flatMap((one) => [one.x[0], one.x[one.x.length - 1]]));
    this.first = Math.min(...xs);
    this.last = Math.max(...xs);
    if (this.first === this.last) { this.first -= 0.5; this.last += 0.5; }
    this.svg.setAttribute("viewBox", `0 0 ${WIDE} ${HIGH * panels.length}`);
    this.svg.setAttribute("aria-label", `${this.heading.textContent}. ${summary}`);
    this.summary = summary;
    this.svg.replaceChildren(...panels.map((panel, row) => this.panel(panel, row)));
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: HIGH * panels.length - BOTTOM, visibility: "hidden" });
    this.svg.append(this.cursor);
    if (this.at === undefined || this.at === null) this.caption.textContent = summary;
    else this.move(Math.min(this.at, this.last));
  }

  x(step) { return LEFT + (step - this.first) / (this.last - this.first) * (WIDE - LEFT - RIGHT); }

  panel(panel, row) {
    const [low, high] = ends([...panel.curves.map((one) => one.y), ...panel.bands.flatMap((one) => [one.low, one.high])], panel.percent);
    const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HIGH - TOP - BOTTOM);
    const group = svg("g", { transform: `translate(0 ${row * HIGH})` });
    for (const at of ticks(low, high, 3)) {
      group.append(svg("path", { class: "grid", d: `M${LEFT} ${y(at).toFixed(1)}H${WIDE - RIGHT}` }),
        svg("text", { x: LEFT - 5, y: y(at) + 4, "text-anchor": "end" }, number(at, panel.percent)));
    }
    for (const at of ticks(this.first, this.last, 6).filter(Number.isInteger)) {
      group.append(svg("text", { x: this.x(at), y: HIGH - 4, "text-anchor": "middle" }, number(at)));
    }
    const line = (xs, ys) => xs.map((x, n) => `${n ? "L" : "M"}${this.x(x).toFixed(1)} ${y(ys[n]).toFixed(1)}`).join("");
    for (const one of panel.bands) {
      const back = line([...one.x].reverse(), [...one.high].reverse()).replace("M", "L");
      group.append(svg("path", { class: one.look, d: `${line(one.x, one.low)}${back}Z` }));
    }
    for (const one of panel.curves) {
      const dash = DASHES[panel.keys.indexOf(one.key)] ?? "";
      const d = one.x.length > 1 ? line(one.x, one.y) : `M${this.x(one.x[0]) - 2} ${y(one.y[0])}h4`;
      group.append(svg("path", { class: `curve ${one.look}${dash}`, d, "data-run": one.run, "data-key": one.key }));
    }
    return group;
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * WIDE - LEFT) / (WIDE - LEFT - RIGHT);
    this.move(this.first + Math.min(1, Math.max(0, share)) * (this.last - this.first));
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const leap = Math.max(1, Math.round((this.last - this.first) / 100)) * (event.shiftKey ? 10 : 1);
    this.move(Math.min(this.last, Math.max(this.first, (this.at ?? this.last) + step * leap)));
  }

  move(at) {
    this.at = at;
    if (!this.cursor) return;
    this.cursor.setAttribute("visibility", at === null ? "hidden" : "visible");
    if (at === null) { this.caption.textContent = this.summary; return; }
    this.cursor.setAttribute("x1", this.x(at));
    this.cursor.setAttribute("x2", this.x(at));
    this.caption.textContent = `Step ${Math.floor(at)}: ${this.told(this.panels, at)}`;
  }
}

// How busy each expert was at each step: a row an expert, a column a step; the fuller, the busier.
export function loads(load) {
  const rows = load.shares.length, columns = load.steps.length;
  const width = (WIDE - LEFT - RIGHT) / columns, height = Math.max(3, Math.min(14, 220 / rows));
  const most = Math.max(2 / rows, ...load.shares.flat());
  const picture = svg("svg", { role: "img", viewBox: `0 0 ${WIDE} ${TOP + rows * height + BOTTOM}` });
  load.shares.forEach((shares, row) => {
    shares.forEach((share, column) => picture.append(svg("rect", {
      class: "cell", x: (LEFT + column * width).toFixed(2), y: (TOP + row * height).toFixed(2), width: (width + 0.2).toFixed(2),
      height: (height - 0.5).toFixed(2), "fill-opacity": (share / most).toFixed(3),
    })));
    if (rows <= 16 || row % 8 === 0) picture.append(svg("text", { x: LEFT - 5, y: TOP + row * height + height * 0.75, "text-anchor": "end" }, String(row)));
  });
  [0, columns - 1].forEach((column) => picture.append(svg("text", {
    x: LEFT + (column + 0.5) * width, y: TOP + rows * height + 13, "text-anchor": column ? "end" : "start" }, String(load.steps[column]))));
  return picture;
}
