// `fetch`, as a page without any library reads a stream. Lines: {status, headers}, {text}… and {final}, all of it.
import { main, print } from "./common.mjs";

await main(async (url, { headers, body }) => {
  const answer = await fetch(url, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body: JSON.stringify(body ?? { message: "hello" }),
  });
  print({ status: answer.status, headers: Object.fromEntries(answer.headers) });
  let final = "";
  for await (const text of answer.body.pipeThrough(new TextDecoderStream())) {
    print({ text });
    final += text;
  }
  print({ final });
});
