// The AI SDK with its providers for OpenAI (whose default is the Responses API) and for servers compatible with it:
// `ai_sdk.mjs URL KEY` prints a JSON object of what each got.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const [url, key] = process.argv.slice(2);
const baseURL = `${url}/v1`;
const schema = z.object({ city: z.string() });

const providers = (apiKey) => {
  const openai = createOpenAI({ baseURL, apiKey });
  const compatible = { baseURL, apiKey, name: "edge", includeUsage: true, supportsStructuredOutputs: true };
  return {
    responses: openai,
    chat: openai.chat,
    compatible: createOpenAICompatible(compatible),
  };
};

const usage = ({ inputTokens, outputTokens }) => [inputTokens > 0, outputTokens];

async function text(model) {
  const { text, finishReason, usage: used } = await generateText({ model, prompt: "Capital?" });
  return { text, finishReason, usage: usage(used) };
}

async function streamed(model) {
  const result = streamText({ model, instructions: "Be brief.", prompt: "Capital?" });
  const parts = [];
  let text = "";
  for await (const part of result.textStream) {
    parts.push(part);
    text += part;
  }
  return { text, several: parts.length > 1, finishReason: await result.finishReason, usage: usage(await result.usage) };
}

// A model that the SDK takes for a reasoning one: instructions have the role `developer`, and thoughts come back.
async function thoughts(model) {
  const openai = { forceReasoning: true, reasoningSummary: "auto", reasoningEffort: "low" };
  const settings = { model, instructions: "Be brief.", providerOptions: { openai, edge: { reasoningEffort: "low" } } };
  const messages = [{ role: "user", content: "Please think" }];
  const result = streamText({ ...settings, messages });
  await result.consumeStream();
  const history = [...messages, ...(await result.responseMessages), { role: "user", content: "Capital?" }];
  const again = (await generateText({ ...settings, messages: history })).text;
  return { reasoning: await result.reasoningText, text: await result.text, again };
}

// A call of two tools at once, their results, and the answer; then the same conversation goes on.
async function tools(model, ask) {
  const asked = [];
  const weather = tool({
    description: "The weather in a city.",
    inputSchema: schema,
    execute: async ({ city }) => {
      asked.push(city);
      return { weather: "sunny" };
    },
  });
  const settings = { model, tools: { weather }, stopWhen: isStepCount(4) };
  const messages = [{ role: "user", content: "Weather in Paris and Rome?" }];
  const result = ask({ ...settings, messages });
  const run = await result;
  if (run.stream) for await (const part of run.stream) if (part.type === "error") throw part.error;
  const steps = (await run.steps).map((step) => [step.finishReason, step.toolCalls.length, step.text]);
  const history = [...messages, ...(await run.responseMessages), { role: "user", content: "Thanks. Capital?" }];
  const again = await generateText({ ...settings, messages: history });
  return { asked: asked.sort(), steps, again: again.text };
}

async function forced(model) {
  const weather = tool({ inputSchema: schema });
  const named = { type: "tool", toolName: "weather" };
  const found = {};
  for (const [name, toolChoice] of Object.entries({ required: "required", named, none: "none" })) {
    const prompt = name === "none" ? "Capital?" : "Call it.";
    const run = await generateText({ model, prompt, tools: { weather }, toolChoice });
    found[name] = run.toolCalls.map((call) => [call.toolName, call.input]);
  }
  return found;
}

async function structured(model) {
  const output = Output.object({ schema });
  const prompt = "A city, as JSON.";
  const stream = streamText({ model, output, prompt });
  const partial = [];
  for await (const part of stream.partialOutputStream) partial.push(part);
  return {
    text: (await generateText({ model, output, prompt })).output,
    streamed: await stream.output,
    partial: partial.length > 1,
    object: (await generateObject({ model, schema, prompt })).object,
    choice: (await generateText({ model, prompt: "Choose.", output: Output.choice({ options: ["no", "yes"] }) })).output,
  };
}

async function error(model) {
  try {
    await generateText({ model, prompt: "Capital?", maxRetries: 0 });
  } catch (problem) {
    return [problem.name, problem.statusCode, problem.isRetryable, problem.message];
  }
  return [];
}

async function streamedError(model) {
  let seen;
  const result = streamText({ model, prompt: "Capital?", maxRetries: 0, onError: ({ error }) => (seen = error) });
  await result.consumeStream();
  return [seen.name, seen.statusCode];
}

// Aborts once the answer has begun; what has come of it stays.
async function cancelled(model) {
  const controller = new AbortController();
  const seen = [];
  const result = streamText({ model, prompt: "Forever?", abortSignal: controller.signal });
  let text = "";
  for await (const part of result.stream) {
    if (part.type === "text-delta") {
      text += part.text;
      controller.abort();
    }
    if (part.type === "abort" || part.type === "finish") seen.push(part.type);
  }
  const waiting = new AbortController();
  await idle();
  const full = generateText({ model, prompt: "Forever?", abortSignal: waiting.signal }).catch((problem) => problem.name);
  while (!(await running())) await new Promise((resolve) => setTimeout(resolve, 20));
  waiting.abort();
  return { began: /^x+$/.test(text), seen, full: await full };
}

// Whether the daemon works on a request.
async function running() {
  const slots = await (await fetch(`${url}/slots`, { headers: { Authorization: `Bearer ${key}` } })).json();
  return slots.some((slot) => slot.is_processing);
}

async function idle() {
  while (await running()) await new Promise((resolve) => setTimeout(resolve, 20));
}

const found = {};
const wrong = providers("wrong");
for (const [name, provider] of Object.entries(providers(key))) {
  const model = provider("scripted");
  found[name] = {
    text: await text(model),
    streamed: await streamed(model),
    thoughts: await thoughts(model),
    tools: await tools(model, generateText),
    streamedTools: await tools(model, streamText),
    forced: await forced(model),
    structured: await structured(model),
    errors: {
      model: await error(provider("other")),
      key: await error(wrong[name]("scripted")),
      streamed: await streamedError(provider("other")),
    },
    cancelled: await cancelled(model),
  };
}
console.log(JSON.stringify(found));
