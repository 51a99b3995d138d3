// What the JavaScript check scripts share; checking.py in JavaScript.
//
// Modules are looked up in the client's own folder, which is not above these scripts: `load("openai")`.

import { appendFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const env = process.env;
export const URL_V1 = `${env.CONFORMANCE_URL}/v1`;
export const [KEY, TEXT, THINKS] = [env.CONFORMANCE_KEY, env.CONFORMANCE_TEXT, env.CONFORMANCE_THINKS];
export const SUM = "(6+0+3+6+3+0+8)%10";
export const CAPITAL = "What is the capital of France?";
export const WEATHER = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] }, days: { type: "integer", maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
};

const modules = createRequire(pathToFileURL(join(process.cwd(), "package.json")));
const checks = [];

export const load = (name) => import(pathToFileURL(modules.resolve(name)));

export const check = (name, body) => checks.push([name, body]);

export function assert(holds, ...evidence) {
  if (!holds) throw new Error(`not so: ${evidence.map((one) => JSON.stringify(one)).join(" ")}`);
}

export const isWeather = (it) =>
  Object.keys(it).sort().join() === "city,days" && WEATHER.properties.city.enum.includes(it.city) && it.days <= 9;

export async function refused(kind, word, ask) {
  try {
    await ask();
  } catch (error) {
    assert(kind(error), error?.name, String(error));
    assert(String(error?.message).includes(word), word, error?.message);
    return error;
  }
  throw new Error(`${word}: was not refused`);
}

export async function run() {
  for (const [name, body] of checks) {
    const begin = performance.now();
    let [status, detail] = ["pass", ""];
    try {
      detail = (await body()) ?? "";
    } catch (error) {
      console.error(error);
      [status, detail] = ["red", `${error?.name}: ${error?.message}`];
    }
    const seconds = Math.round((performance.now() - begin) / 10) / 100;
    const line = { check: name, status, detail: detail.replace(/\s+/g, " ").slice(0, 400), seconds };
    appendFileSync(env.CONFORMANCE_OUT, `${JSON.stringify(line)}\n`);
  }
}
