// Chats over /v1/messages with the stock ai and @ai-sdk/anthropic packages.
//
// usage: node chat.mjs BASE_URL
//
// Streams, calls a tool, asks for JSON by a schema, makes an error and cancels. Prints one JSON object of what it saw.
import { createAnthropic } from "@ai-sdk/anthropic";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";

const base = process.argv[2];
const models = await (await fetch(`${base}/v1/models`)).json();
const lamina = createAnthropic({ baseURL: `${base}/v1`, apiKey: "none" });
const common = { model: lamina(models.data[0].id), maxOutputTokens: 24, temperature: 0, maxRetries: 0 };
const hello = "Say hello.";

const parts = [];
for await (const part of streamText({ ...common, prompt: hello }).textStream) parts.push(part);
const text = parts.join("");
const whole = await generateText({ ...common, prompt: hello });
if (whole.text !== text || parts.length < 2) throw new Error(`streamed ${JSON.stringify(parts)}, whole ${whole.text}`);

const called = streamText({
  ...common,
  maxOutputTokens: 60,
  prompt: "How is the weather in Rome?",
  toolChoice: "required",
  tools: {
    get_weather: tool({
      description: "Tells the weather in a city.",
      inputSchema: jsonSchema({
        type: "object",
        properties: { city: { type: "string", maxLength: 20 } },
        required: ["city"],
      }),
    }),
  },
});
const [call] = await called.toolCalls;

const schema = {
  type: "object",
  properties: { name: { type: "string", maxLength: 12 }, age: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["name", "age"],
  additionalProperties: false,
};
const { output } = await generateText({
  ...common,
  maxOutputTokens: 80,
  prompt: "Describe a person.",
  output: Output.object({ schema: jsonSchema(schema) }),
});

let status = 0;
try {
  await generateText({ ...common, model: lamina("unknown"), prompt: hello });
} catch (e) {
  status = e.statusCode;
}

const stop = new AbortController();
try {
  const long = streamText({ ...common, maxOutputTokens: 500, prompt: hello, abortSignal: stop.signal, onError() {} });
  for await (const _ of long.textStream) stop.abort();
} catch (e) {
  if (e.name !== "AbortError") throw e;
}
await generateText({ ...common, maxOutputTokens: 2, prompt: hello });

console.log(JSON.stringify({
  text, call: call.toolName, city: typeof call.input.city === "string", person: Object.keys(output).sort(), status,
}));
