// The chat: sends the conversation, reads the answer as it streams in. Uses the events of flask-byok
// (byok:open, byok:change) and its HTTP interface, and no markup is ever made from a string.

const chat = document.querySelector("#chat");
const log = document.querySelector("#log");
const composer = document.querySelector("#composer");
const { provider: menu, text } = composer.elements;
const [send, stop] = [document.querySelector("#send"), document.querySelector("#stop")];
const csrfToken = document.querySelector("meta[name=csrf-token]").content;

const KEYS = {
  session: "your key",
  user: "your account's key",
  team: "your team's key",
  system: "the app's key",
  secret: "the app's key",
  env: "the app's key",
};
const NEEDS_A_KEY = ["key_missing", "key_rejected", "key_unreadable"];

const conversation = [];
let running = null;

/** Yield `{event, data}` for each server-sent event of an answer. */
async function* serverSentEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const lines = frame.split("\n").map((line) => line.match(/^(\w+): (.*)$/).slice(1));
      const { event, data } = Object.fromEntries(lines);
      yield { event, data: JSON.parse(data) };
    }
  }
}

function add(tag, className, content, parent) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = content;
  parent.append(element);
  return element;
}

function addTurn(kind, content) {
  document.querySelector("#welcome")?.remove();
  const turn = add("div", `turn ${kind}`, "", log);
  const paragraph = add("p", "", content, turn);
  turn.scrollIntoView({ block: "end" });
  return { turn, paragraph };
}

function showProblem({ code, detail, title }, provider) {
  const { turn } = addTurn("failed", detail ?? title ?? "The server gave an unexpected answer.");
  turn.role = "alert";
  if (!NEEDS_A_KEY.includes(code)) return;
  add("button", "", "Open API keys", turn).onclick = () => openKeys(provider);
  if (code === "key_missing") openKeys(provider);
}

function openKeys(provider) {
  document.dispatchEvent(new CustomEvent("byok:open", { detail: { provider } }));
}

async function ask(provider, name, signal) {
  const response = await fetch(chat.dataset.chatUrl, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRFToken": csrfToken },
    body: JSON.stringify({ provider, messages: conversation }),
    signal,
  });
  if (!response.ok) {
    const problem = response.headers.get("Content-Type").includes("json") ? await response.json() : {};
    if (response.status === 400) problem.detail = "Your session has changed. Please load the page again.";
    if (response.status === 503) problem.detail = "The store does not answer. Please try again in a moment.";
    return showProblem(problem, provider);
  }
  const { turn, paragraph } = addTurn("theirs", "");
  const key = KEYS[response.headers.get("X-BYOK-Source")];
  turn.prepend(add("span", "from", `${name}, with ${key}`, turn));
  turn.ariaBusy = "true";
  try {
    for await (const { event, data } of serverSentEvents(response)) {
      if (event === "delta") paragraph.textContent += data.text;
      if (event === "error") showProblem(data, provider);
      turn.scrollIntoView({ block: "end" });
    }
  } finally {
    turn.ariaBusy = "false";
    if (paragraph.textContent) conversation.push({ role: "assistant", content: paragraph.textContent });
    else turn.remove();
  }
}

function setRunning(controller) {
  running = controller;
  send.hidden = Boolean(running);
  stop.hidden = !running;
}

async function submit() {
  const content = text.value.trim();
  if (!content || running) return;
  const chosen = menu.selectedOptions[0];
  for (const old of log.querySelectorAll(".failed")) old.remove();
  conversation.push({ role: "user", content });
  const { turn } = addTurn("mine", content);
  text.value = "";
  setRunning(new AbortController());
  try {
    await ask(chosen.value, chosen.dataset.name, running.signal);
  } catch (error) {
    if (error.name !== "AbortError") showProblem({ detail: "The connection was lost. Please try again." });
  } finally {
    if (conversation.at(-1).role === "user") takeBack(turn);
    setRunning(null);
  }
}

// What was not answered is not part of the conversation; it goes back to be sent again.
function takeBack(turn) {
  const { content } = conversation.pop();
  text.value ||= content;
  turn.remove();
}

function showSource() {
  const { source } = menu.selectedOptions[0].dataset;
  const shown = source ? `Answers with ${KEYS[source]}.` : "No key yet.";
  document.querySelector("#source").textContent = shown;
}

async function refreshSources() {
  const response = await fetch(chat.dataset.keysUrl);
  if (!response.ok) return;
  const { providers } = await response.json();
  for (const { provider, source } of providers) {
    menu.querySelector(`option[value="${CSS.escape(provider)}"]`).dataset.source = source ?? "";
  }
  showSource();
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
stop.addEventListener("click", () => running?.abort());
menu.addEventListener("change", showSource);
document.addEventListener("byok:change", refreshSources);
showSource();
