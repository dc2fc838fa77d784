// Anthropic's SDK: a streamed message. Lines: {event}… and {final}, the message put together from them; or {error}.
import Anthropic from "@anthropic-ai/sdk";
import { hello, main, print } from "./common.mjs";

await main(async (baseURL, { api_key = "none", headers, model = "claude-haiku-4-5", messages = hello, ...params }) => {
  const client = new Anthropic({ baseURL, apiKey: api_key, maxRetries: 0, defaultHeaders: headers });
  const stream = client.messages.stream({ model, messages, max_tokens: 100, ...params });
  stream.on("streamEvent", (event) => print({ event }));
  print({ final: await stream.finalMessage() });
});
