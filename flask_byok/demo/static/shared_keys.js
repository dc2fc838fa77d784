// The admin's page, over the HTTP interface of flask-byok. No markup is ever made from a string.

const page = document.querySelector("#shared");
const table = document.querySelector("#keys");
const add = document.querySelector("#add");
const change = document.querySelector("#change");
const sure = document.querySelector("#delete");
const { api_key: newKey, active } = change.querySelector("form").elements;
const csrfToken = document.querySelector("meta[name=csrf-token]").content;

const nameOf = (select, value) => [...add.elements[select].options].find((o) => o.value === value)?.text ?? value;
const titleOf = ({ owner, provider }) => `${nameOf("provider", provider)}, ${nameOf("owner", owner)}`;

/** Call the interface; an answer that is no success is thrown as its problem. */
async function call(path = "", method = "GET", body = undefined, version = undefined) {
  const response = await fetch(page.dataset.keysUrl + path, {
    method,
    headers: {
      "X-CSRFToken": csrfToken,
      ...(body && { "Content-Type": "application/json" }),
      ...(version && { "If-Match": `"${version}"` }),
    },
    body: body && JSON.stringify(body),
  });
  if (response.status === 204) return null;
  const answer = await response.json();
  if (!response.ok) throw answer;
  return answer;
}

async function load() {
  const found = [];
  for (let next = ""; next !== null; ) {
    const some = await call(next && `?cursor=${next}`);
    found.push(...some.keys);
    next = some.next;
  }
  table.tBodies[0].replaceChildren(...found.map(row));
  table.hidden = !found.length;
}

function row(key) {
  const tr = document.createElement("tr");
  const uses = key.usage_count ? `, uses: ${key.usage_count}` : "";
  const facts = [nameOf("owner", key.owner), nameOf("provider", key.provider), key.hint, `${key.state}${uses}`];
  for (const fact of facts) tr.insertCell().textContent = fact;
  const button = document.createElement("button");
  button.textContent = "Change";
  button.ariaLabel = `Change ${titleOf(key)}`;
  button.onclick = () => ask(key);
  tr.insertCell().append(button);
  return tr;
}

function ask(key) {
  document.querySelector("#change-title").textContent = titleOf(key);
  newKey.value = "";
  active.checked = key.active;
  change.returnValue = "";
  change.onclose = () => answer(key);
  change.showModal();
}

async function answer(key) {
  const typed = newKey.value;
  newKey.value = "";
  if (change.returnValue === "delete") {
    askToDelete(key);
  } else if (change.returnValue === "save") {
    const body = { active: active.checked, ...(typed && { api_key: typed }) };
    await attempt("Saved", () => call(`/${key.id}`, "PATCH", body, key.version));
  }
}

function askToDelete(key) {
  document.querySelector("#delete-title").textContent = `Delete ${titleOf(key)}?`;
  sure.returnValue = "";
  sure.onclose = () => {
    if (sure.returnValue !== "delete") return;
    attempt("Deleted", () => call(`/${key.id}`, "DELETE", undefined, key.version));
  };
  sure.showModal();
}

// What was typed goes only when it has been saved.
async function attempt(done, work, form = null) {
  try {
    await work();
    form?.reset();
    await load();
    say(done);
  } catch (problem) {
    say(problem.detail ?? problem.title ?? "No connection to the server. Please try again.", true);
    if (problem.status === 412 || problem.status === 404) await load();
  }
}

function say(words, failed = false) {
  const said = document.querySelector("#said");
  said.textContent = words;
  said.className = failed ? "wrong" : "";
}

add.addEventListener("submit", (event) => {
  event.preventDefault();
  attempt("Added", () => call("", "POST", Object.fromEntries(new FormData(add))), add);
});
attempt("", () => null);
