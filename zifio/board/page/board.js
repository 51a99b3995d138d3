// The board: which runs and which stage are shown, what is asked of the server, and when it is asked again.

import { $, make, themed } from "/shared/make.js";
import { Chart, loads, number, smoothed, upTo } from "./chart.js";

const POLL_MS = 2000;
const COLOURS = 8;
const state = { runs: [], shown: new Set(), focus: 0, stage: "", charts: new Map(), drawn: "", price: null, detail: null, paused: false, busy: false };

// What stands on the board, in order. A chart has one panel, or two below one another; a panel up to three metrics.
function specs() {
  const stages = state.runs.map((run) => stageOf(run)).filter(Boolean);
  const ks = Math.max(1, ...stages.map((stage) => stage.k ?? 1));
  const layers = [...new Set(stages.flatMap((stage) => stage.layers))].sort((a, b) => a - b);
  const k = ks > 1 ? [{ keys: [`held_out/pass_at_${ks}`], percent: true }] : [];
  return [
    ["Held-out problems: pass@1" + (ks > 1 ? `, below it pass@${ks}` : ""), [{ keys: ["held_out/pass_at_1"], percent: true, interval: true }, ...k]],
    ["Reward in training, below it the share of groups without a signal", [{ keys: ["reward"] }, { keys: ["frac_reward_zero_std"], percent: true }]],
    ["Loss", [{ keys: ["loss"] }]],
    ["Entropy", [{ keys: ["entropy"] }]],
    ["KL, below it the share of clipped tokens", [{ keys: ["kl"] }, { keys: ["clip_ratio"], percent: true }]],
    ["Tokens of right replies (solid) and of wrong ones (dashed)", [{ keys: ["completions/mean_length_right", "completions/mean_length_wrong"] }]],
    ["Replies cut before their end", [{ keys: ["completions/clipped_ratio"], percent: true }]],
    ["Difference between sampler and trainer: mean (solid), largest (dashed)", [{ keys: ["sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"] }]],
    ["Checks that broke", [{ keys: ["n_verifier_errors"] }]],
    ["Guard: right by gold (solid) and by the reward (dashed)", [{ keys: ["guard/gold", "guard/proxy"], percent: true }]],
    ["Largest load of an expert over the mean", layers.slice(0, 2).map((layer) => ({ keys: [`expert_load/${layer}/max_over_mean`] }))],
    ["Norm of the gradient", [{ keys: ["grad_norm"] }]],
    ["Tokens a second", [{ keys: ["tokens_per_s"] }]],
    ["FLOPs so far", [{ keys: ["flops"] }]],
  ];
}

// Small things ---------------------------------------------------------------------------------------------------------

async function ask(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  if (!answer.ok) throw new Error(`The board answers ${answer.status}.`);
  return answer.json();
}

const stageOf = (run, name = state.stage) => run.stages.find((stage) => stage.name === name);
const indices = () => [...state.shown].sort((a, b) => a - b).filter((n) => state.runs[n] && stageOf(state.runs[n]));

function look(n) {
  const coloured = [...state.shown].sort((a, b) => a - b);
  const place = coloured.indexOf(n);
  const colour = coloured.length <= COLOURS && place >= 0 ? `c${place}` : n === state.focus ? "c0" : "other";
  return n === state.focus ? `${colour} focus` : colour;
}

const duration = (seconds) => seconds < 120 ? `${Math.round(seconds)} s` : seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;

function spent(totals) {
  const cost = state.price && totals.seconds ? `cost ${(totals.seconds / 3600 * state.price).toFixed(2)}` : "";
  return [totals.seconds ? duration(totals.seconds) : "", totals.flops ? `${totals.flops.toExponential(1)} FLOPs` : "",
    totals.tokens_per_s ? `${number(totals.tokens_per_s)} tokens/s` : "", cost].filter(Boolean).join(", ");
}

// The list of runs -----------------------------------------------------------------------------------------------------

function list() {
  const wanted = $("find").value.trim().toLowerCase();
  const active = document.activeElement?.id;
  $("list").replaceChildren(...state.runs.map((run, n) => row(run, n)).filter((node) => !wanted || node.dataset.name.includes(wanted)));
  if (active && document.getElementById(active) && document.activeElement === document.body) document.getElementById(active).focus();
}

function row(run, n) {
  const stage = stageOf(run);
  const show = make("input", {
    type: "checkbox", id: `show-${n}`, checked: state.shown.has(n),
    onchange: (event) => { if (event.target.checked) state.shown.add(n); else state.shown.delete(n); list(); refresh(true); },
  });
  const name = make("button", { type: "button", id: `focus-${n}`, "aria-label": `Look at ${run.name}`, onclick: () => focusOn(n) }, run.name);
  const swatch = make("span", { class: `swatch ${state.shown.has(n) ? look(n).split(" ")[0] : ""}`, "aria-hidden": "true" });
  const label = make("label", { for: `show-${n}`, class: "soft" }, "show");
  const told = stage ? `${stage.step}${stage.steps ? ` of ${stage.steps}` : ""}` : "";
  const seen = stage?.findings ? make("span", { class: "bad" }, `${stage.findings} ${stage.findings === 1 ? "finding" : "findings"}`) : stage ? "nothing wrong" : "";
  return make("tr", { "data-name": run.name.toLowerCase(), "aria-current": n === state.focus ? "true" : null },
    make("td", {}, show, swatch, label, " ", name, run.reference ? " (reference)" : ""),
    make("td", {}, stage?.state ?? "not begun", " ", make("span", { class: "soft" }, stage ? spent(stage.totals) : "")),
    make("td", {}, told), make("td", {}, seen));
}

function focusOn(n) {
  state.focus = n;
  state.shown.add(n);
  state.detail = null;
  list();
  refresh(true);
}

// The charts -----------------------------------------------------------------------------------------------------------

async function drawCharts() {
  const shown = indices();
  const standings = new Map();
  for (const [title, wanted] of specs()) {
    const keys = wanted.flatMap((panel) => panel.keys);
    if (!keys.length) continue;
    const interval = wanted.some((panel) => panel.interval) ? ["held_out/pass_at_1_low", "held_out/pass_at_1_high"] : [];
    const query = new URLSearchParams([["stage", state.stage], ...[...keys, ...interval].map((key) => ["key", key]), ...shown.map((n) => ["run", n])]);
    const found = shown.length ? await ask(`/api/chart?${query}`) : { curves: [], bands: {}, standings: {} };
    const panels = wanted.map((panel) => filled(panel, found)).filter((panel) => panel.curves.length);
    for (const [n, by] of Object.entries(found.standings)) for (const key of keys) if (by[key]) standings.set(`${n} ${key}`, [Number(n), key, by[key]]);
    const id = wanted.map((panel) => panel.keys[0]).join(" ");
    place(id, title, panels);
  }
  const own = [...standings.values()].filter(([n, key]) => n === state.focus && ["held_out/pass_at_1", "reward", "loss"].includes(key));
  $("bands").textContent = own.map(([, key, text]) => `${key}: ${text}.`).join(" ");
}

function filled(panel, found) {
  const ease = $("smooth").checked ? smoothed : (values) => values;
  const curves = found.curves.filter((one) => panel.keys.includes(one.key))
    .map((one) => ({ ...one, y: ease(one.y), look: look(one.run) }))
    .sort((a, b) => (a.run === state.focus) - (b.run === state.focus)); // the one looked at is drawn last, on top
  const bands = panel.keys.filter((key) => found.bands[key]).map((key) => ({ ...found.bands[key], look: "band" }));
  const mine = (key) => found.curves.find((one) => one.run === state.focus && one.key === key);
  const low = mine("held_out/pass_at_1_low"), high = mine("held_out/pass_at_1_high");
  if (panel.interval && low && high && low.x.length === high.x.length && low.x.every((x, n) => x === high.x[n])) {
    bands.push({ x: low.x, low: low.y, high: high.y, look: "interval" });
  }
  return { ...panel, curves, bands };
}

function place(id, title, panels) {
  let chart = state.charts.get(id);
  if (!panels.length) {
    if (chart) { chart.node.remove(); state.charts.delete(id); }
    return;
  }
  if (!chart) {
    chart = new Chart(title, told);
    state.charts.set(id, chart);
    const ids = specs().map(([, wanted]) => wanted.map((panel) => panel.keys[0]).join(" "));
    const after = ids.slice(ids.indexOf(id) + 1).map((other) => state.charts.get(other)?.node).find(Boolean);
    $("charts").insertBefore(chart.node, after ?? null);
  }
  chart.heading.textContent = title;
  chart.draw(panels, `Latest: ${told(panels, Infinity)}`);
}

// What the curves are at a step, in words: of the run that is looked at, and of up to seven others.
function told(panels, at) {
  const parts = [];
  for (const panel of panels) {
    const near = [...panel.curves].reverse().slice(0, COLOURS);
    for (const one of near) {
      const n = upTo(one.x, at);
      if (n >= 0) parts.push(`${state.runs[one.run]?.name ?? ""} ${one.key.split("/").pop()} ${number(one.y[n], panel.percent)}`);
    }
  }
  return parts.join("; ");
}

// One run: what the doctor says, experts, rollouts ---------------------------------------------------------------------

async function drawDetail() {
  const run = state.runs[state.focus], stage = run && stageOf(run);
  if (!stage) {
    $("findings").replaceChildren(make("p", { class: "soft" }, run ? `${run.name} has not begun this stage.` : "No run is there yet."));
    $("experts").hidden = $("rollouts").hidden = true;
    return;
  }
  state.detail = await ask(`/api/stage?${new URLSearchParams({ run: state.focus, stage: state.stage })}`);
  const found = state.detail.findings.map((one) => make("div", { class: "finding" },
    make("h3", {}, one.says), make("ul", {}, ...one.evidence.map((text) => make("li", {}, text))),
    make("p", { class: "soft" }, "What to try:"), make("ul", {}, ...one.tries.map((text) => make("li", {}, text)))));
  $("doctor-title").textContent = `Diagnosis of ${run.name}, ${state.stage}`;
  $("findings").replaceChildren(...(found.length ? found : [make("p", { class: "good" }, "Nothing wrong is seen.")]));
  $("experts").hidden = !state.detail.experts.length;
  $("loads").replaceChildren(...state.detail.experts.map(layer));
  rollouts();
}

function layer(load) {
  const dead = load.dead.length ? `dead: ${load.dead.join(", ")}` : "none is dead";
  const text = `Layer ${load.layer}, ${load.shares.length} experts: largest violation ${number(load.largest_violation)}, ${dead}`;
  const picture = loads(load);
  picture.setAttribute("aria-label", text);
  return make("figure", {}, make("h3", {}, text), picture, make("figcaption", {}, `Steps ${load.steps[0]} to ${load.steps[load.steps.length - 1]}; a row an expert, the fuller the busier.`));
}

function rollouts() {
  const rows = state.detail.rollouts;
  $("rollouts").hidden = !rows.length;
  if (!rows.length) return;
  const problems = [...new Map(rows.map((row) => [row.problem, row.prompt]))];
  const steps = [...new Set(rows.map((row) => row.step))].sort((a, b) => a - b);
  choices($("problem"), problems.map(([id, prompt], n) => [id, `${n + 1}: ${prompt.slice(0, 60)}`]), problems[0][0]);
  choices($("before"), steps.map((step) => [step, step]), steps[0], false);
  choices($("after"), steps.map((step) => [step, step]), steps[steps.length - 1], true);
  pair();
}

// Options of a select; what was chosen stays, and a last one that was chosen follows what is new.
function choices(select, options, fallback, follows) {
  const before = select.value, wasLast = follows && select.selectedIndex === select.options.length - 1;
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, String(text))));
  select.value = before && !wasLast && options.some(([value]) => String(value) === before) ? before : String(fallback);
}

function pair() {
  const rows = state.detail.rollouts.filter((row) => row.problem === $("problem").value);
  if (!rows.length) return;
  $("prompt").textContent = `${rows[0].prompt}\nRight answer: ${rows[0].gold}`;
  const two = [$("before").value, $("after").value].map((step) => rows.find((row) => String(row.step) === step)).filter(Boolean);
  $("pair").replaceChildren(...two.map((row) => make("article", {},
    make("h3", {}, `Step ${row.step}: `, make("span", { class: row.outcome === "right" ? "good" : "bad" }, row.outcome)),
    make("p", { class: "soft" }, [...Object.entries(row.parts).map(([name, value]) => `${name} ${number(value)}`), `${row.n_tokens} tokens`,
      row.finish === "length" ? "cut" : "", row.reason].filter(Boolean).join(", ")),
    make("p", { class: "words reply" }, row.response))));
}

// Asking again ---------------------------------------------------------------------------------------------------------

async function poll() {
  let wait = POLL_MS;
  if (!state.paused && !document.hidden) {
    const began = performance.now();
    try {
      const found = await ask("/api/runs");
      $("net").textContent = found.ready ? "" : "Reading the runs";
      take(found);
      await refresh(false);
    } catch (error) {
      $("net").textContent = `The board is not reached. ${error.message}`;
    }
    wait = Math.max(POLL_MS, 4 * (performance.now() - began)); // what takes long comes seldom
  }
  setTimeout(poll, wait);
}

function take(found) {
  const first = !state.runs.length;
  state.runs = found.runs;
  state.price = found.price_per_hour;
  if (first) {
    found.runs.forEach((run, n) => { if (!run.reference) state.shown.add(n); });
    state.focus = Math.max(0, found.runs.findIndex((run) => !run.reference));
  }
  const names = [...new Set(found.runs.flatMap((run) => run.stages.map((stage) => stage.name)))];
  const newest = [...(found.runs[state.focus]?.stages ?? [])].reverse();
  const chosen = state.stage || (newest.find((stage) => stage.state === "running") ?? newest.find((stage) => stage.kind === "rl") ?? newest[0])?.name;
  if (names.join() !== [...$("stage").options].map((one) => one.value).join()) {
    $("stage").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  }
  if (chosen) { state.stage = chosen; $("stage").value = chosen; }
}

async function refresh(now) {
  const versions = indices().map((n) => `${n}:${stageOf(state.runs[n]).version}`).join();
  const sign = [state.stage, state.focus, $("smooth").checked, versions].join("|");
  if (state.busy || (sign === state.drawn && !now)) { if (now) state.again = true; return; }
  state.busy = true;
  try {
    list();
    await drawDetail();
    await drawCharts();
    state.drawn = sign;
    document.body.dataset.drawn = String(Number(document.body.dataset.drawn ?? 0) + 1);
  } catch (error) {
    $("net").textContent = error.message;
  } finally {
    state.busy = false;
  }
  if (state.again) { state.again = false; await refresh(true); }
}

$("pause").addEventListener("click", () => { state.paused = !state.paused; $("pause").setAttribute("aria-pressed", String(state.paused)); });
$("stage").addEventListener("change", () => { state.stage = $("stage").value; refresh(true); });
$("smooth").addEventListener("change", () => refresh(true));
$("find").addEventListener("input", list);
$("all").addEventListener("click", () => { state.runs.forEach((run, n) => { if (!run.reference) state.shown.add(n); }); refresh(true); });
$("none").addEventListener("click", () => { state.shown = new Set([state.focus]); refresh(true); });
for (const id of ["problem", "before", "after"]) $(id).addEventListener("change", pair);
themed($("theme"), "zifio-board/theme");
poll();
