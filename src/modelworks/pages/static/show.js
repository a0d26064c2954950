// Numbers, times and states as people read them, and elements made of text alone.
const WORDS = { succeeded: "completed" };

export const byId = (id) => document.getElementById(id);
export const stateWord = (state) => WORDS[state] ?? state;
export const clock = (iso) => new Date(iso).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function make(tag, { text = "", className = "", ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (className) element.className = className;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function number(value, digits = 4) {
  if (value == null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  return value.toLocaleString("en", { maximumSignificantDigits: digits });
}

export function seconds(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value < 60) return `${Math.round(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min`;
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(value, 1)) / 3));
  return `${number(value / 1000 ** power, 3)} ${units[power]}`;
}

/** Ask the API; an error holds its `status` and each of its `problems` as a line. */
export async function fetchJson(path, { body, method = body === undefined ? "GET" : "POST" } = {}) {
  const sent = body === undefined || body instanceof FormData ? { body } : { body: JSON.stringify(body) };
  const headers = { Accept: "application/json", ...(typeof sent.body === "string" && { "Content-Type": "application/json" }) };
  const response = await fetch(path, { method, headers, ...sent }).catch(() => {
    throw new Error("the server does not answer; is it still running?");
  });
  if (!response.ok) throw await failure(response);
  return response.status === 204 ? null : response.json();
}

export async function failure(response) {
  const told = await response.json().catch(() => ({}));
  const lines = (told.problems ?? []).map(({ where, what, remedy }) => [where, what].filter(Boolean).join(": ") + (remedy ? `; ${remedy}` : ""));
  const text = told.detail ?? told.error?.message ?? `${response.status} ${response.statusText}`;
  return Object.assign(new Error(text), { status: response.status, problems: lines });
}

/** What went wrong, in a box that is read out; several problems as a list. */
export function showError(box, error) {
  box.hidden = !error;
  if (!error) return;
  const lines = error.problems?.length > 1 ? error.problems : [error.message];
  box.replaceChildren(...lines.map((line) => make("p", { text: line })));
}

/** Do what a button says, once at a time, and tell in `box` why it could not be done. */
export async function press(button, box, work) {
  button.disabled = true;
  showError(box, null);
  try {
    return await work();
  } catch (error) {
    showError(box, error);
  } finally {
    button.disabled = false;
  }
}

export const pathOf = (name) => name.split("/").map(encodeURIComponent).join("/");
export const jobLink = (id, text = id.slice(0, 13)) => make("a", { text, href: `/modelworks/dashboard?job=${encodeURIComponent(id)}` });
export const modelLink = (name) => make("a", { text: name, href: `/modelworks/model?name=${encodeURIComponent(name)}` });
export const badge = (state) => make("span", { text: stateWord(state), className: "badge", "data-state": state });

export function plain(value) {
  if (value == null || value === "") return "–";
  if (typeof value === "number") return Number.isInteger(value) ? value.toLocaleString("en") : number(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.map(plain).join(", ");
  return typeof value === "object" ? Object.entries(value).map(([key, inner]) => `${key} ${plain(inner)}`).join(", ") : String(value);
}

/** A table of rows of text or elements; what stands alone has no heading. */
export function table(headings, rows) {
  const line = (tag, cells) => make("tr", {}, ...cells.map((cell) => make(tag, tag === "th" ? { scope: "col" } : {}, cell ?? "–")));
  const parts = [...(headings.length ? [make("thead", {}, line("th", headings))] : []), make("tbody", {}, ...rows.map((row) => line("td", row)))];
  return make("div", { className: "scroll" }, make("table", {}, ...parts));
}

/** Facts as pairs; those without a value are left out. */
export function facts(pairs) {
  const known = Object.entries(pairs).filter(([, value]) => value != null && value !== "");
  return make("dl", { className: "facts" }, ...known.map(([key, value]) =>
    make("div", {}, make("dt", { text: key }), make("dd", {}, value instanceof Node ? value : plain(value)))));
}

/** A text to be copied, with the button that does it. */
export function copyable(text) {
  const button = make("button", { type: "button", className: "copy", text: "Copy" });
  button.addEventListener("click", async () => {
    // Without https only this machine's own pages may write to the clipboard; the text is selected instead.
    await navigator.clipboard?.writeText(text).then(() => setText(button, "Copied"), () => {});
    if (button.textContent !== "Copied") getSelection().selectAllChildren(button.nextSibling);
    setTimeout(() => setText(button, "Copy"), 1500);
  });
  return make("div", { className: "copyable" }, button, make("pre", {}, make("code", { text })));
}
