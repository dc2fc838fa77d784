// AI SDK with its provider for OpenAI's format. Lines: {part}… and {final}.
import { createOpenAI } from "@ai-sdk/openai";
import { jsonSchema, streamText, tool } from "ai";
import { hello, main, print } from "./common.mjs";

await main(async (baseURL, { api_key = "none", headers, model = "gpt-4o-mini", messages = hello, tools = [] }) => {
  const openai = createOpenAI({ baseURL, apiKey: api_key, headers });
  const described = tools.map(({ function: { name, description, parameters } }) => [
    name,
    tool({ description, inputSchema: jsonSchema(parameters) }),
  ]);
  const failures = [];
  const result = streamText({
    model: openai.chat(model),
    messages,
    tools: Object.fromEntries(described),
    maxRetries: 0,
    onError: ({ error }) => failures.push(error),
  });
  for await (const part of result.fullStream) print({ part });
  if (failures.length) throw failures[0];
  const [content, finishReason, usage, calls] = [result.text, result.finishReason, result.usage, result.toolCalls];
  const toolCalls = (await calls).map(({ toolCallId, toolName, input }) => ({ toolCallId, toolName, input }));
  print({ final: { text: await content, finishReason: await finishReason, usage: await usage, toolCalls } });
});
