// openai-node: a streamed chat. Lines: {chunk}… and {final}, the completion put together from them; or {error}.
import OpenAI from "openai";
import { hello, main, print } from "./common.mjs";

await main(async (baseURL, { api_key = "none", headers, model = "gpt-4o-mini", messages = hello, ...params }) => {
  const client = new OpenAI({ baseURL, apiKey: api_key, maxRetries: 0, defaultHeaders: headers });
  const stream = client.chat.completions.stream({ model, messages, ...params });
  stream.on("chunk", (chunk) => print({ chunk }));
  print({ final: await stream.finalChatCompletion() });
});
