// The openai client for JavaScript, on chat and text completions.

import { CAPITAL, KEY, SUM, TEXT, THINKS, URL_V1, WEATHER, assert, check, isWeather, load, refused, run } from "./checking.mjs";

const { default: OpenAI, NotFoundError, BadRequestError, AuthenticationError } = await load("openai");
const client = new OpenAI({ baseURL: URL_V1, apiKey: KEY, maxRetries: 0, timeout: 300_000 });
const messages = [{ role: "user", content: CAPITAL }];
const greedy = { model: TEXT, messages, temperature: 0, max_tokens: 12 };
const create = (more = {}) => client.chat.completions.create({ ...greedy, ...more });

check("models", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert(names.includes(TEXT) && names.includes(THINKS), names);
  assert((await client.models.retrieve(TEXT)).id === TEXT);
});

check("whole", async () => {
  const { choices, usage } = await create();
  assert(choices[0].message.content.includes("Paris") && choices[0].finish_reason === "stop", choices);
  assert(usage.total_tokens === usage.prompt_tokens + usage.completion_tokens, usage);
  assert((await create({ max_tokens: 2 })).choices[0].finish_reason === "length");
});

check("stream", async () => {
  const whole = await create();
  let [text, usage] = ["", null];
  for await (const chunk of await create({ stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert(text === whole.choices[0].message.content, text, whole.choices);
  assert(usage.completion_tokens === whole.usage.completion_tokens, usage, whole.usage);
  const helped = await client.chat.completions.stream(greedy).finalContent();
  assert(helped === text, helped);
});

check("thinking", async () => {
  const asked = { model: THINKS, messages: [{ role: "user", content: SUM }], thinking: { type: "enabled" }, max_tokens: 60 };
  const { message } = (await create(asked)).choices[0];
  assert(message.reasoning_content && message.content && !message.content.includes("<think>"), message);
  let [reasoning, content] = ["", ""];
  for await (const { choices } of await create({ ...asked, stream: true })) {
    reasoning += choices[0].delta.reasoning_content ?? "";
    content += choices[0].delta.content ?? "";
  }
  assert(reasoning === message.reasoning_content && content === message.content, reasoning, content, message);
});

check("tools", async () => {
  const asked = {
    messages: [{ role: "user", content: "The weather in Rome for 3 days?" }],
    tools: [{ type: "function", function: { name: "weather", strict: true, parameters: WEATHER } }],
    tool_choice: "required",
    parallel_tool_calls: false,
    max_tokens: 60,
  };
  const [choice] = (await create(asked)).choices;
  const [call] = choice.message.tool_calls;
  assert(choice.finish_reason === "tool_calls" && call.function.name === "weather", choice);
  assert(isWeather(JSON.parse(call.function.arguments)), call);
  const streamed = await client.chat.completions.stream({ ...greedy, ...asked }).finalChatCompletion();
  assert(streamed.choices[0].message.tool_calls[0].function.arguments === call.function.arguments, streamed);
  const back = [...asked.messages, choice.message, { role: "tool", tool_call_id: call.id, content: "sunny" }];
  const after = await create({ ...asked, messages: back, tool_choice: "none", max_tokens: 8 });
  assert(after.choices[0].message.content, after);
});

check("schema", async () => {
  const response_format = { type: "json_schema", json_schema: { name: "weather", strict: true, schema: WEATHER } };
  const reply = await client.chat.completions.parse({ ...greedy, max_tokens: 40, response_format });
  assert(isWeather(JSON.parse(reply.choices[0].message.content)), reply);
});

check("log-probs", async () => {
  const [choice] = (await create({ logprobs: true, top_logprobs: 2 })).choices;
  const told = choice.logprobs.content;
  assert(told.map((token) => token.token).join("") === choice.message.content, told);
  assert(told.every((token) => token.top_logprobs.length === 2 && token.logprob <= 0), told);
});

check("completions", async () => {
  const asked = { model: TEXT, prompt: "The capital of France is", temperature: 0, max_tokens: 6 };
  const [choice] = (await client.completions.create({ ...asked, echo: true, logprobs: 1 })).choices;
  assert(choice.text.startsWith(asked.prompt) && choice.logprobs.token_logprobs[0] === null, choice);
  let text = asked.prompt;
  for await (const chunk of await client.completions.create({ ...asked, stream: true })) text += chunk.choices[0].text;
  assert(text === choice.text, text, choice.text);
});

check("errors", async () => {
  await refused((e) => e instanceof NotFoundError, "no-such-model", () => create({ model: "no-such-model" }));
  await refused((e) => e instanceof BadRequestError, "1000000", () => create({ max_tokens: 1e6 }));
  const long = [{ role: "user", content: "deep ".repeat(9000) }];
  const error = await refused((e) => e instanceof BadRequestError, "maximum context length", () => create({ messages: long }));
  assert(error.code === "context_length_exceeded" && error.param === "messages", error);
  const stranger = new OpenAI({ baseURL: URL_V1, apiKey: "wrong", maxRetries: 0 });
  await refused((e) => e instanceof AuthenticationError, "key", () => stranger.chat.completions.create(greedy));
});

await run();
