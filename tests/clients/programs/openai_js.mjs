// OpenAI's client for JavaScript over both of its APIs: `openai_js.mjs URL KEY` prints a JSON object of what it got.
import OpenAI from "openai";
import { zodResponsesFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, key] = process.argv.slice(2);
const settings = { baseURL: `${url}/v1`, maxRetries: 0 };
const client = new OpenAI({ ...settings, apiKey: key });
const model = "scripted";
const schema = z.object({ city: z.string() });
const ask = (content) => ({ model, messages: [{ role: "user", content }] });

async function error(asked) {
  try {
    await asked;
  } catch (problem) {
    return [problem.constructor.name, problem.status, problem.code];
  }
  return [];
}

const failing = {
  chat: (one, name) => one.chat.completions.create({ ...ask("Capital?"), model: name }),
  responses: (one, name) => one.responses.create({ model: name, input: "Capital?" }),
};
const errors = async (api) => ({
  model: await error(failing[api](client, "other")),
  key: await error(failing[api](new OpenAI({ ...settings, apiKey: "wrong" }), model)),
});

async function chat() {
  const { completions } = client.chat;
  const whole = await completions.create(ask("Capital?"));
  const stream = completions.stream({ ...ask("Capital?"), stream_options: { include_usage: true } });
  const asked = [];
  const weather = {
    type: "function",
    function: {
      name: "weather",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
      parse: JSON.parse,
      function: ({ city }) => asked.push(city) && "sunny",
    },
  };
  const run = (options) => completions.runTools({ ...ask("Weather?"), tools: [weather], ...options }).finalContent();
  const parsed = await completions.parse({ ...ask("A city, as JSON."), response_format: zodResponseFormat(schema, "city") });
  const endless = await completions.create({ ...ask("Forever?"), stream: true });
  let began = "";
  for await (const chunk of endless) {
    began += chunk.choices[0]?.delta?.content ?? "";
    if (began) endless.controller.abort();
  }
  return {
    text: whole.choices[0].message.content,
    streamed: await stream.finalContent(),
    usage: (await stream.totalUsage()).completion_tokens === whole.usage.completion_tokens,
    tools: await run({}),
    streamedTools: await run({ stream: true }),
    asked: asked.sort(),
    structured: parsed.choices[0].message.parsed,
    errors: await errors("chat"),
    cancelled: /^x+$/.test(began),
  };
}

async function responses() {
  const { responses } = client;
  const whole = await responses.create({ model, input: "Capital?" });
  const stream = responses.stream({ model, input: "Capital?" });
  const numbers = [];
  for await (const event of stream) numbers.push(event.sequence_number);
  const streamed = await stream.finalResponse();
  const tools = [zodResponsesFunction({ name: "weather", parameters: schema })];
  const called = await responses.parse({ model, input: "Weather?", tools });
  const calls = called.output.filter((item) => item.type === "function_call");
  const results = calls.map(({ call_id }) => ({ type: "function_call_output", call_id, output: "sunny" }));
  const answer = await responses.create({ model, input: results, previous_response_id: called.id, tools });
  const parsed = await responses.parse({ model, input: "As JSON.", text: { format: zodTextFormat(schema, "city") } });
  const endless = await responses.create({ model, input: "Forever?", stream: true });
  let began = "";
  for await (const event of endless) {
    if (event.type === "response.output_text.delta") began += event.delta;
    if (began) endless.controller.abort();
  }
  return {
    text: whole.output_text,
    streamed: streamed.output_text,
    numbered: numbers.every((number, index) => number === index),
    usage: streamed.usage.output_tokens === whole.usage.output_tokens,
    asked: calls.map((call) => call.parsed_arguments.city).sort(),
    tools: answer.output_text,
    structured: parsed.output_parsed,
    errors: await errors("responses"),
    cancelled: /^x+$/.test(began),
  };
}

const listed = (await client.models.list()).data.map((one) => one.id);
console.log(JSON.stringify({ chat: await chat(), responses: await responses(), listed }));
