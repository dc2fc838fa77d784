// Google's SDK: a streamed answer. Lines: {chunk}… and {final}: its text, calls, finish reason and usage; or {error}.
// Option `api_version`: "v1beta", for servers that know no other; the SDK's own default is "v1".
import { GoogleGenAI } from "@google/genai";
import { main, print } from "./common.mjs";

await main(async (baseUrl, options) => {
  const { api_key = "none", api_version, headers, model = "gemini-2.5-flash", contents = "hello", config } = options;
  const client = new GoogleGenAI({ apiKey: api_key, apiVersion: api_version, httpOptions: { baseUrl, headers } });
  const final = { text: "", thoughts: "", functionCalls: [] };
  for await (const chunk of await client.models.generateContentStream({ model, contents, config })) {
    print({ chunk });
    const [candidate] = chunk.candidates ?? [];
    for (const { text = "", thought, functionCall } of candidate?.content?.parts ?? []) {
      final[thought ? "thoughts" : "text"] += text;
      if (functionCall) final.functionCalls.push(functionCall);
    }
    final.finishReason = candidate?.finishReason ?? final.finishReason;
    final.usage = chunk.usageMetadata ?? final.usage;
  }
  print({ final });
});
