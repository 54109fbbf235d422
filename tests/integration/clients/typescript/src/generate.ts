// Generates text over lamina.router.v1 with @grpc/grpc-js and stubs made from proto/.
//
// usage: node dist/generate.js ADDRESS PROMPT MAX_TOKENS
//
// Prints one JSON object: {"text": ..., "token_ids": [...]}.

import { credentials } from "@grpc/grpc-js";
import {
  GenerateRequest,
  type GenerateResponse,
  RouterServiceClient,
} from "./gen/lamina/router/v1/router.js";

async function main(): Promise<void> {
  const [address, prompt, maxTokens] = process.argv.slice(2);
  const client = new RouterServiceClient(address, credentials.createInsecure());
  const request = GenerateRequest.fromPartial({
    text: prompt,
    maxTokens: Number(maxTokens),
    sampling: { temperature: 0 },
  });
  let text = "";
  let finished = false;
  const ids: number[] = [];
  const deadline = Date.now() + 120_000;
  const events = client.generate(request, { deadline }) as AsyncIterable<GenerateResponse>;
  for await (const event of events) {
    if (event.token) {
      text += event.token.text;
      ids.push(event.token.id);
    } else if (event.finished) {
      text += event.finished.text;
      finished = true;
    }
  }
  client.close();
  if (!finished) {
    throw new Error("the stream ended without a finish reason");
  }
  console.log(JSON.stringify({ text, token_ids: ids }));
}

main().catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
