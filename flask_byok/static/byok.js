// The browser's side of flask-byok: the verbs for hosts, and the element <byok-settings>.
// Needs no build, no library and no exception to a Content-Security-Policy. The server renders every
// word and every row; this file only sends what was typed and puts fresh rows in place of old ones.

let token; // undefined: not known yet; null: the host needs none

/** Return `{providers, precedence, authenticated, storage, csrf_token}`. */
export async function getProviderKeys() {
  const answer = await request("/keys");
  token = answer.csrf_token;
  return answer;
}

/** Save a key: a string, or an object of fields. Options: persist (in the account), label, expires_at (ISO 8601) and more. */
export async function setProviderKey(provider, key, options = {}) {
  return changed("save", provider, await post("/keys/set", { provider, ...typed(key), ...options }));
}

/** Remove the person's own key; `tier` is "session", "user" or "all". */
export async function clearProviderKey(provider, tier = "all") {
  return changed("clear", provider, await post("/keys/clear", { provider, tier }));
}

/** Check a typed key, or, without one, the key in use. */
export async function validateProviderKey(provider, key) {
  const answer = await post("/keys/validate", { provider, ...(key !== undefined && typed(key)) });
  return key !== undefined ? answer : changed("validate", provider, answer);
}

/** Keep in the account what was saved before signing in, or for the session; `onConflict` is "keep" or "replace". */
export async function promoteProviderKeys(providers, onConflict = "keep") {
  const body = { on_conflict: onConflict, ...(providers && { providers }) };
  const one = providers?.length === 1 ? providers[0] : null;
  return changed("promote", one, await post("/keys/promote", body));
}

/** Return true if there is a key that works as far as is known, the person's own or a shared one; an alias will do. */
export async function hasApiKey(provider) {
  const { providers } = await getProviderKeys();
  const works = ({ has_key, state }) => has_key && state === "active";
  return providers.some((each) => [each.provider, ...each.aliases].includes(provider) && works(each));
}

const typed = (key) => (typeof key === "string" ? { api_key: key } : { fields: key });

function changed(action, provider, answer) {
  document.dispatchEvent(new CustomEvent("byok:change", { detail: { action, provider, answer } }));
  return answer;
}

// The server's address is that of this file. It is not read from the page, as people's HTML may stand there, and it is a
// whole URL, as a <base> in such HTML would redirect a path. A file on another origin, such as a CDN, gets no key.
const above = new URL("..", import.meta.url);
const base = above.origin === location.origin ? above.href.slice(0, -1) : `${location.origin}/api/providers`;

function failure(code, message = "", facts = {}) {
  return Object.assign(new Error(message), { code }, facts);
}

async function request(path, body, method = body ? "POST" : "GET") {
  let response;
  try {
    response = await fetch(base + path, {
      method,
      headers: body && { "Content-Type": "application/json", "X-CSRFToken": token ?? "" },
      body: body && JSON.stringify(body),
    });
  } catch {
    throw failure("network");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const { code = "unexpected", detail, title } = answer ?? {};
  throw failure(code, detail ?? title, { status: response.status, problem: answer });
}

// While a page stays open its token expires and its session ends: then get both again and retry once.
async function post(path, body, method = "POST") {
  if (token === undefined) await getProviderKeys();
  try {
    return await request(path, body, method);
  } catch (error) {
    if (error.code !== "csrf" && error.code !== "session_required") throw error;
    await getProviderKeys();
    return request(path, body, method);
  }
}

// Change label and expiry of the account's key that the row shows: the first active one. The key itself stays.
async function changeDetails(provider, details) {
  const { keys } = await request(`/../keys?provider=${encodeURIComponent(provider)}`);
  const slots = keys.sort(
    ({ slot: one }, { slot: other }) => one.length - other.length || (one < other ? -1 : 1),
  );
  const shown = slots.find(({ state }) => state !== "inactive" && state !== "expired") ?? slots[0];
  if (!shown) throw failure("key_not_found");
  return changed("save", provider, await post(`/../keys/${shown.id}`, details, "PATCH"));
}

// The settings as the server renders them now. XMLHttpRequest gives a document in which nothing runs;
// no HTML passes through a string here.
function rendered() {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.open("GET", `${base}/settings`);
    xhr.responseType = "document";
    xhr.onerror = () => reject(failure("network"));
    xhr.onload = () => {
      const settings = xhr.response?.querySelector("byok-settings");
      const root = settings?.shadowRoot ?? settings?.querySelector("template")?.content;
      const content = root?.querySelector("[data-byok-content]");
      if (content) resolve(content);
      else reject(failure("unexpected"));
    };
    xhr.send();
  });
}

const rowOf = (root, provider) => root.querySelector(`[data-byok-provider="${CSS.escape(provider)}"]`);

class ByokSettings extends HTMLElement {
  #retry = null;
  #stale = "";
  #refreshed = null;
  #refreshes = 0;
  #gone = null;
  #opening = null;

  connectedCallback() {
    this.#adoptTemplate();
    const root = this.shadowRoot;
    if (!root) return;
    this.toggleAttribute("data-byok-ready", true);
    this.#readToken(root);
    this.#gone = new AbortController();
    const on = (target, type, listener, capture = false) =>
      target?.addEventListener(type, listener, { signal: this.#gone.signal, capture });
    on(root, "submit", (event) => this.#onSubmit(event));
    on(root, "click", (event) => this.#onClick(event));
    on(root, "keydown", (event) => this.#onKey(event));
    on(root, "toggle", (event) => this.#onToggle(event), true);
    on(root, "invalid", (event) => (event.target.closest("details") ?? {}).open = true, true);
    on(root, "input", (event) => this.#onInput(event.target));
    on(root, "paste", onPaste);
    on(root, "reset", (event) => guess(event.target, ""));
    on(document, "byok:change", ({ detail }) => (this.#refreshed = this.#refresh(detail.provider, true)));
    on(window, "pagehide", () => wipe(root));
    on(window, "pageshow", (event) => event.persisted && this.#refresh());
    const dialog = this.closest("dialog");
    on(dialog, "close", () => wipe(root));
    this.#opening = new MutationObserver(() => dialog.open && this.#freshen());
    if (dialog) this.#opening.observe(dialog, { attributeFilter: ["open"] });
  }

  disconnectedCallback() {
    this.#gone?.abort();
    this.#opening?.disconnect();
  }

  /** Put the focus where a key for the provider is typed. */
  focusProvider(provider) {
    const row = rowOf(this.shadowRoot, provider);
    focusIn(row, "[part=input]:enabled");
    row?.scrollIntoView({ block: "nearest" });
  }

  // A browser without declarative shadow roots leaves the template where it is.
  #adoptTemplate() {
    const template = this.querySelector(":scope > template");
    if (this.shadowRoot || !template) return;
    this.attachShadow({ mode: "open" }).append(template.content);
    template.remove();
  }

  #readToken(root) {
    const field = root.querySelector("[data-byok-csrf]");
    if (field) token = field.value;
  }

  #onSubmit(event) {
    const row = event.target.closest("[data-byok-provider]");
    if (!row) return; // the form that closes the dialog, which passes through our slot
    event.preventDefault();
    const { dataset, value } = event.submitter ?? {};
    this.#act(row.dataset.byokProvider, dataset?.byokAction ?? "save", value);
  }

  #onClick(event) {
    const control = event.target.closest("[data-byok-action]");
    if (control?.ariaDisabled === "true") event.preventDefault();
    else if (control?.dataset.byokAction === "reveal") reveal(control, control.ariaPressed !== "true");
    else if (control?.dataset.byokAction === "cancel") this.#cancel(control);
    else if (control?.dataset.byokAction === "retry") {
      event.preventDefault();
      if (control.matches("a") || !this.#retry) this.#load();
      else this.#retry();
    }
  }

  #onInput(input) {
    input.removeAttribute("aria-invalid");
    if (!input.matches("[part=input]")) return;
    const name = whose(input);
    guess(input.form, name && this.dataset.textLooksLike.replace("{name}", name));
  }

  // What the server warned of, after the message.
  #warned(row, message, { warnings }) {
    const other = warnings?.[0]?.provider;
    if (!other) return message;
    const name = beginningsOn(row).map(([, names]) => names[other]).find(Boolean) ?? other;
    return `${message.replace(/\.?$/, ".")} ${this.dataset.textLooksLike.replace("{name}", name)}`;
  }

  #onKey(event) {
    const open = event.key === "Escape" && event.target.closest("[part=confirm][open]");
    if (!open) return;
    event.preventDefault(); // the question closes, the dialog stays
    this.#cancel(open);
  }

  #onToggle(event) {
    if (event.target.open) event.target.querySelector("[data-byok-action=cancel]")?.focus();
  }

  #cancel(within) {
    const confirm = within.closest("[part=confirm]");
    confirm.open = false;
    confirm.querySelector("summary").focus();
  }

  async #act(provider, action, value) {
    const row = rowOf(this.shadowRoot, provider);
    if (row.ariaBusy === "true") return;
    setBusy(row, true);
    this.#say("busy", this.dataset.textWorking);
    try {
      const { kind, message } = await this[`_${action}`](provider, row, value);
      await this.#refreshed;
      if (this.#stale) this.#say("warning", `${message.replace(/\.?$/, ".")} ${this.#stale}`, () => this.#load());
      else this.#say(kind, message);
    } catch (error) {
      this.#fail(action === "confirm" ? "clear" : action, error, row, () => this.#act(provider, action, value));
    } finally {
      setBusy(row, false);
    }
  }

  async _save(provider, row) {
    const place = placeIn(row);
    const details = detailsIn(row, place?.persist === false ? "session" : "user");
    const answer = await setProviderKey(provider, typedIn(row), { ...place, ...details });
    const { validation, warnings } = answer;
    wipe(row);
    const caveat = validation && validation.verdict !== "valid" ? `. ${validation.reason}` : "";
    const message = this.#warned(row, this.dataset.textSaved + caveat, answer);
    return { kind: warnings?.length ? "warning" : "success", message };
  }

  async _change(provider, row) {
    await changeDetails(provider, changedDetailsIn(row));
    return { kind: "success", message: this.dataset.textChanged };
  }

  async _validate(provider, row) {
    const name = row.querySelector("[part=name]").textContent;
    const answer = await validateProviderKey(provider, typedIn(row));
    const { valid, reason, models_available: models } = answer;
    const count = models?.length ? ` ${this.dataset.textModels.replace("{count}", models.length)}` : "";
    const kind = valid ? "success" : valid === null ? "warning" : "error";
    const said = reason.includes(name) ? reason : `${name}: ${reason}`;
    return { kind, message: this.#warned(row, said + count, answer) };
  }

  async _confirm(provider, row, tier) {
    const { cleared, provider: status } = await clearProviderKey(provider, tier);
    const message = cleared.length ? this.dataset.textCleared : this.dataset.textNothingCleared;
    // Without a status the key is gone all the same: a store was away that only the status needs.
    const now = status?.source === "user" ? this.dataset.textAccountNow : this.dataset.textSharedNow;
    return { kind: "success", message: status?.has_key ? `${message}. ${now}` : message };
  }

  async _promote(provider, row, onConflict) {
    const { promoted } = await promoteProviderKeys([provider], onConflict);
    return { kind: "success", message: promoted.length ? this.dataset.textPromoted : this.dataset.textKept };
  }

  #failed(action, error) {
    const { textNetwork: network, textUnexpected: unexpected, textGone: gone } = this.dataset;
    const known = { network, unexpected, key_not_found: gone };
    // Details name fields as programs know them.
    const reason = (known[error.code] ?? error.message).replace("expires_at", `“${this.dataset.textExpires}”`);
    const failed = this.dataset[`text${action[0].toUpperCase()}${action.slice(1)}Failed`];
    return reason ? `${failed}: ${reason}` : failed;
  }

  #fail(action, error, row, again) {
    const passing = error.code === "network" || error.status === 429 || error.status >= 500;
    this.#say("error", this.#failed(action, error), passing ? again : null);
    if (error.status !== 422) return;
    const note = error.message.includes("expires_at") ? "expires_at" : action === "change" && "label";
    markInvalid(row, note ? `[name=${note}]` : "[part=input]");
  }

  #say(kind, message, retry = null) {
    const region = this.shadowRoot.querySelector("[data-byok-message]");
    const button = this.shadowRoot.querySelector("button[data-byok-action=retry]");
    if (!retry && this.shadowRoot.activeElement === button) region.focus();
    this.#retry = retry;
    button.hidden = !retry;
    region.role = kind === "error" ? "alert" : "status";
    region.dataset.byokKind = kind;
    region.textContent = message;
  }

  async #load() {
    this.#say("busy", this.dataset.textWorking);
    if (await this.#refresh(null, true)) this.#say("", "");
  }

  // The present settings. An answer to a request from before a later refresh may be older than the change behind that
  // refresh, so ask again.
  async #latest() {
    this.#refreshes += 1;
    let fresh, asked;
    do {
      asked = this.#refreshes;
      fresh = await rendered();
    } while (asked !== this.#refreshes);
    return fresh;
  }

  // Another tab may have changed the keys since the page was loaded. Rows that the person is editing stay.
  async #freshen() {
    this.ariaBusy = "true";
    const fresh = await this.#latest().catch(() => null);
    this.ariaBusy = null;
    if (!fresh) return;
    this.#stale = "";
    const content = this.shadowRoot.querySelector("[data-byok-content]");
    const rows = [...content.querySelectorAll("[data-byok-provider]")];
    if (!rows.some(isTouched)) swap(content, fresh);
    else {
      for (const row of rows.filter((one) => !isTouched(one))) {
        const now = rowOf(fresh, row.dataset.byokProvider);
        if (now) swap(row, now);
      }
    }
    this.#readToken(this.shadowRoot);
  }

  // Replace the provider's row, or without a provider all rows, by the server's fresh one. Where rows are to `stay`, they
  // do if the server has none, with the reason.
  async #refresh(provider, stay = false) {
    const root = this.shadowRoot;
    const rows = root.querySelector("[data-byok-provider]");
    let failed;
    try {
      const fresh = await this.#latest();
      failed = stay && rows && fresh.querySelector("[data-byok-failure] p")?.textContent;
      const [old, now] = [root, fresh].map((one) => provider && rowOf(one, provider));
      if (old && now) addRows(root, fresh);
      if (old && now) swap(old, now);
      else if (!failed) swap(root.querySelector("[data-byok-content]"), fresh);
      this.#readToken(root);
    } catch (error) {
      failed = this.#failed("load", error);
    }
    const { textLoadFailed, textStale } = this.dataset;
    this.#stale = failed && rows ? failed.replace(textLoadFailed, textStale) : "";
    if (failed) this.#say("error", this.#stale || failed, () => this.#load());
    return !failed;
  }
}

// A named endpoint that was saved gets a row of its own.
function addRows(root, fresh) {
  for (const row of fresh.querySelectorAll("[data-byok-provider]")) {
    if (!rowOf(root, row.dataset.byokProvider)) root.querySelector("[part=list]").append(document.importNode(row, true));
  }
}

// Line by line: an input drops line breaks, which part what was pasted. The server reads this space as one.
function onPaste(event) {
  const lines = event.clipboardData?.getData("text/plain").trim().split(/[\r\n]+/) ?? [];
  const input = event.target;
  if (lines.length < 2 || !input.matches("[part=input]") || input.readOnly) return;
  event.preventDefault();
  input.setRangeText(lines.join("\u00a0"), input.selectionStart, input.selectionEnd, "end");
  input.dispatchEvent(new Event("input", { bubbles: true }));
}

const beginningsOn = (element) =>
  Object.entries(JSON.parse(element.closest("[data-byok-beginnings]")?.dataset.byokBeginnings ?? "{}"));

// The name of the other provider whose key was typed, as far as its beginning shows.
function whose(input) {
  const known = beginningsOn(input).sort(([one], [other]) => other.length - one.length);
  const own = input.closest("[data-byok-provider]").dataset.byokProvider;
  const words = input.value.split(/[\s"'`=:,(]+/);
  const found = words.map((word) => known.find(([beginning]) => word.startsWith(beginning))?.[1] ?? {});
  if (found.some((names) => own in names)) return "";
  return found.map(Object.values).find((names) => names.length === 1)?.[0] ?? "";
}

function guess(form, text) {
  const line = form.querySelector("[data-byok-guess]");
  if (line) line.textContent = text;
}

function wipe(root) {
  for (const button of root.querySelectorAll("[data-byok-action=reveal]")) reveal(button, false);
  for (const form of root.querySelectorAll("form")) form.reset();
}

function isTouched(row) {
  const inputs = [...row.querySelectorAll("[part~=input], [part=checkbox]")];
  const changed = inputs.some((one) => one.value !== one.defaultValue || one.checked !== one.defaultChecked);
  return changed || row.ariaBusy === "true" || row.querySelector("details[open]") !== null;
}

// The typed text: nothing, one key, or all fields of a credential that has several.
function typedIn(row) {
  const inputs = [...row.querySelectorAll("[part=input]")];
  if (!inputs.some((input) => input.value)) return undefined;
  if (inputs.length === 1 && inputs[0].name === "api_key") return inputs[0].value;
  return Object.fromEntries(inputs.map((input) => [input.name, input.value]));
}

// Where to keep the key; nothing if the row does not ask.
function placeIn(row) {
  const { persist } = row.querySelector("form").elements;
  return persist && { persist: persist.checked };
}

// Label and expiry of a new key for that place, without those that the row shows of another place's key.
function detailsIn(row, place) {
  const { label, expires_at: day } = row.querySelector("form").elements;
  if (!label) return undefined;
  const isOther = place && row.querySelector("[part=options]").dataset.byokOf !== place;
  const said = (input) => (isOther && input.value === input.defaultValue ? "" : input.value);
  return { label: said(label) || null, expires_at: said(day) ? `${said(day)}T23:59:59Z` : null };
}

// Label and expiry of a key that stays. A day is less precise than the stored time, and a past time shows no day.
function changedDetailsIn(row) {
  const { expires_at: day } = row.querySelector("form").elements;
  const { expires_at, ...details } = detailsIn(row);
  return day.value === day.defaultValue ? details : { ...details, expires_at };
}

function reveal(button, shown) {
  button.ariaPressed = String(shown);
  button.getRootNode().getElementById(button.getAttribute("aria-controls")).type = shown ? "text" : "password";
}

// Not `disabled`: a disabled control drops the focus to the page behind the dialog.
function setBusy(row, busy) {
  row.ariaBusy = String(busy);
  for (const control of row.querySelectorAll("button, summary")) control.ariaDisabled = busy ? "true" : null;
  for (const input of row.querySelectorAll("[part~=input]")) input.readOnly = busy;
}

function markInvalid(row, selector) {
  for (const input of row.querySelectorAll(selector)) {
    input.ariaInvalid = "true";
    const folded = input.closest("details");
    if (folded) folded.open = true;
  }
  focusIn(row, `${selector}:enabled`);
}

function swap(old, now) {
  const fresh = document.importNode(now, true);
  const focused = old.getRootNode().activeElement;
  const held = old.contains(focused) ? focused : null;
  old.replaceWith(fresh);
  if (held) refocus(fresh, held);
}

// Focus the same control if it is still there; after a removal the input of the same row.
function refocus(fresh, held) {
  const provider = held.closest("[data-byok-provider]")?.dataset.byokProvider;
  const row = (provider && (rowOf(fresh, provider) ?? fresh)) || fresh;
  const { byokAction: action } = held.dataset;
  const same = action ? `[data-byok-action="${action}"]` : `[name="${CSS.escape(held.name ?? "")}"]`;
  focusIn(row, same) || focusIn(row, "[part=input]:enabled") || row.focus();
}

function focusIn(row, selector) {
  const control = row?.querySelector(selector);
  control?.focus();
  return control?.matches(":focus");
}

customElements.define("byok-settings", ByokSettings);

const dialog = () => document.querySelector("#byok-dialog");

function openDialog(provider) {
  if (!dialog()) return location.assign(`${base}/settings`);
  if (!dialog().open) dialog().showModal();
  if (provider) dialog().querySelector("byok-settings").focusProvider(provider);
}

document.addEventListener("byok:open", (event) => openDialog(event.detail?.provider));

// A browser without invoker commands leaves the button without effect.
if (!("command" in HTMLButtonElement.prototype)) {
  document.addEventListener("click", (event) => {
    if (event.target.closest?.('[commandfor="byok-dialog"]')) openDialog();
  });
}
