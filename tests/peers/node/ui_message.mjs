// AI SDK's chat, as `useChat` of its React, Vue and Svelte packages runs it, without a browser.
// Lines: {chunk}… as they come and {final}: the assistant's message, the chat's status and what `onFinish` is given.
// Options: `sdk` "ai" or "ai-5"; `transport` "default" or "text".
import { main, print } from "./common.mjs";

/** The state that the packages keep in their framework's way. */
class State {
  status = "ready";
  messages = [];
  pushMessage = (message) => this.messages.push(message);
  popMessage = () => this.messages.pop();
  replaceMessage = (index, message) => (this.messages[index] = message);
  snapshot = structuredClone;
}

const seen = (stream) =>
  stream.pipeThrough(
    new TransformStream({
      transform(chunk, controller) {
        print({ chunk });
        controller.enqueue(chunk);
      },
    }),
  );

await main(async (api, { sdk = "ai", transport = "default", headers, body, message = "hello" }) => {
  const { AbstractChat, DefaultChatTransport, TextStreamChatTransport } = await import(sdk);
  class Chat extends AbstractChat {
    constructor(options) {
      super({ ...options, state: new State() });
    }
  }
  class Seen extends (transport === "text" ? TextStreamChatTransport : DefaultChatTransport) {
    processResponseStream = (stream) => seen(super.processResponseStream(stream));
  }
  let finish;
  let failure;
  const chat = new Chat({
    transport: new Seen({ api, headers, body }),
    onFinish: ({ isAbort, isDisconnect, isError, finishReason }) =>
      (finish = { isAbort, isDisconnect, isError, finishReason }),
    onError: ({ name, message, statusCode }) => (failure = { name, message, statusCode }),
  });
  await chat.sendMessage({ text: message });
  print({ final: { message: chat.lastMessage, status: chat.status, error: failure, finish } });
});
