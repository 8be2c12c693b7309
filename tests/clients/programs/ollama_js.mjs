// Ollama's client for JavaScript: `ollama_js.mjs URL` prints a JSON object of what it got.
import { Ollama } from "ollama";

const client = new Ollama({ host: process.argv[2] });
const ask = { model: "scripted", messages: [{ role: "user", content: "Hello" }] };
const weather = {
  type: "function",
  function: {
    name: "weather",
    description: "Tell the weather.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const about = (content) => ({ ...ask, messages: [{ role: "user", content }] });
const join = async (stream) => {
  let text = "";
  for await (const part of stream) text += part.message.content;
  return text;
};
const called = await client.chat({ ...about("The weather in Orléans?"), tools: [weather] });
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const structured = await client.chat({ ...about("A city as JSON."), format: schema });
const error = await client.chat({ ...ask, model: "other" }).then(() => "", (refused) => refused.message);
const stream = await client.chat({ ...ask, stream: true });
const cancelled = await client.chat({ ...about("Count."), stream: true });
let stopped = "";
try {
  for await (const part of cancelled) cancelled.abort();
} catch (problem) {
  stopped = problem.name;
}
console.log(
  JSON.stringify({
    text: (await client.chat(ask)).message.content,
    streamed: await join(stream),
    called: called.message.tool_calls.map((call) => [call.function.name, call.function.arguments]),
    structured: JSON.parse(structured.message.content),
    error,
    stopped,
    listed: (await client.list()).models.map((model) => model.name),
  }),
);
