// Vercel's AI SDK, through the provider that CONFORMANCE_PROVIDER names: @ai-sdk/deepseek or @ai-sdk/openai-compatible.

import { CAPITAL, KEY, SUM, TEXT, THINKS, URL_V1, WEATHER, assert, check, isWeather, load, refused, run } from "./checking.mjs";

const { APICallError, Output, generateText, isStepCount, jsonSchema, streamText, tool } = await load("ai");
const isDeepSeek = process.env.CONFORMANCE_PROVIDER === "deepseek";
const settings = { baseURL: URL_V1, apiKey: KEY };
const compatible = { ...settings, name: "zifio", supportsStructuredOutputs: true, includeUsage: true };
const make = async (more = {}) =>
  isDeepSeek
    ? (await load("@ai-sdk/deepseek")).createDeepSeek({ ...settings, ...more })
    : (await load("@ai-sdk/openai-compatible")).createOpenAICompatible({ ...compatible, ...more });
const provider = await make();
const thinks = (type) => ({ providerOptions: { deepseek: { thinking: { type } }, zifio: { thinking: { type } } } });
const greedy = { model: provider(TEXT), temperature: 0, maxOutputTokens: 12, maxRetries: 0, ...thinks("disabled") };
const sum = { model: provider(THINKS), prompt: SUM, maxOutputTokens: 60, maxRetries: 0, ...thinks("enabled") };

check("whole", async () => {
  const { text, finishReason, usage } = await generateText({ ...greedy, prompt: CAPITAL });
  assert(text.includes("Paris") && finishReason === "stop", text, finishReason);
  assert(usage.totalTokens === usage.inputTokens + usage.outputTokens, usage);
  const cut = await generateText({ ...greedy, maxOutputTokens: 2, prompt: CAPITAL });
  assert(cut.finishReason === "length", cut.finishReason);
});

check("stream", async () => {
  const whole = await generateText({ ...greedy, prompt: CAPITAL });
  const stream = streamText({ ...greedy, prompt: CAPITAL });
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  const usage = await stream.usage;
  assert(text === whole.text && (await stream.finishReason) === "stop", text, whole.text);
  assert(usage.outputTokens === whole.usage.outputTokens, usage, whole.usage);
});

check("thinking", async () => {
  const whole = await generateText(sum);
  assert(whole.reasoningText && whole.text && !whole.text.includes("<think>"), whole.reasoningText, whole.text);
  assert(whole.usage.outputTokenDetails.reasoningTokens > 0, whole.usage);
  const kinds = {};
  for await (const part of streamText(sum).fullStream) kinds[part.type] = (kinds[part.type] ?? 0) + 1;
  for (const kind of ["reasoning-start", "reasoning-delta", "reasoning-end", "text-delta", "finish"]) assert(kinds[kind], kinds);
  assert(!kinds.error, kinds);
});

check("tools", async () => {
  let called = null;
  const weather = tool({
    description: "The weather",
    inputSchema: jsonSchema(WEATHER),
    execute: async (input) => {
      called = input;
      return "sunny";
    },
  });
  // A small model that must call calls again and again, up to the eight times that the server lets it.
  const asked = { ...greedy, maxOutputTokens: 300, tools: { weather }, prompt: "The weather in Rome for 3 days?" };
  const forced = (step) => ({ toolChoice: step.stepNumber === 0 ? "required" : "none" });
  const { steps } = await generateText({ ...asked, prepareStep: forced, stopWhen: isStepCount(2) });
  assert(called && isWeather(called), called);
  assert(steps.length === 2 && steps[0].finishReason === "tool-calls" && steps[1].text, steps.length);
  called = null;
  const stream = streamText({ ...asked, toolChoice: "required", stopWhen: isStepCount(1) });
  for await (const part of stream.fullStream) assert(part.type !== "error", String(part.error));
  assert(called && isWeather(called), called);
});

check("schema", async () => {
  // To DeepSeek this provider sends no schema, only that it wants an object; what is in it is the model's affair.
  const output = isDeepSeek ? Output.json() : Output.object({ schema: jsonSchema(WEATHER) });
  const fits = (it) => (isDeepSeek ? typeof it === "object" && !Array.isArray(it) : isWeather(it));
  const asked = { ...greedy, maxOutputTokens: 120, prompt: 'Say {"city": "Rome", "days": 3} and nothing else.', output };
  const whole = await generateText(asked);
  assert(fits(whole.output), whole.output);
  let last = null;
  for await (const partial of streamText(asked).partialOutputStream) last = partial;
  assert(JSON.stringify(last) === JSON.stringify(whole.output), last, whole.output);
});

check("errors", async () => {
  const isStatus = (status) => (error) => APICallError.isInstance(error) && error.statusCode === status;
  const ask = (more) => () => generateText({ ...greedy, prompt: CAPITAL, ...more });
  await refused(isStatus(404), "no-such-model", ask({ model: provider("no-such-model") }));
  await refused(isStatus(400), "1000000", ask({ maxOutputTokens: 1e6 }));
  await refused(isStatus(400), "maximum context length", ask({ prompt: "deep ".repeat(9000) }));
  await refused(isStatus(401), "key", ask({ model: (await make({ apiKey: "wrong" }))(TEXT) }));
});

await run();
