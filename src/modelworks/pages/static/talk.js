// Chat with any model of the server, or with two beside each other, over its OpenAI API.
import { byId, failure, fetchJson, make, number, setText, showError } from "./show.js";

const SIDES = ["model", "beside"];
const SETTINGS = ["temperature", "max_tokens", "seed"];
let turns = []; // {prompt, answers: {model name: text}}
let stopping = null; // ends every answer that is being written

const chosen = () => [...new Set(SIDES.map((side) => byId(side).value).filter(Boolean))];

function messages(model, upTo) {
  const system = byId("system").value.trim();
  const said = turns.slice(0, upTo).flatMap(({ prompt, answers }) => [
    { role: "user", content: prompt }, ...(answers[model] ? [{ role: "assistant", content: answers[model] }] : []),
  ]);
  return [...(system ? [{ role: "system", content: system }] : []), ...said];
}

/** The chunks of an answer as they come. */
async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the answer broke off; the server may have stopped");
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

async function answer(model, turn, index, said, note) {
  const body = { model, messages: messages(model, index + 1), stream: true, stream_options: { include_usage: true }, temperature: 0.7 };
  for (const key of SETTINGS) if (byId(key).value.trim()) body[key] = Number(byId(key).value);
  const begun = performance.now();
  let first = 0, usage = null, reason = "";
  setText(note, "waiting for the model …");
  try {
    const response = await fetch("/v1/chat/completions", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: stopping.signal })
      .catch((error) => { throw error.name === "AbortError" ? error : new Error("the server does not answer; is it still running?"); });
    if (!response.ok) throw await failure(response);
    for await (const chunk of chunks(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const text = chunk.choices?.[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
      reason = chunk.choices?.[0]?.finish_reason ?? reason;
      if (!text) continue;
      if (!first) { first = performance.now(); setText(note, ""); }
      turn.answers[model] = (turn.answers[model] ?? "") + text;
      keepInView(() => said.append(text));
    }
    const writing = (performance.now() - first) / 1000, tokens = usage?.completion_tokens ?? 0;
    setText(note, [
      `${tokens} tokens`, first && tokens > 1 ? `${number((tokens - 1) / writing, 3)} a second` : "", first ? `first after ${number((first - begun) / 1000, 2)} s` : "nothing was said",
      reason === "length" ? "cut at the longest answer" : "",
    ].filter(Boolean).join(", "));
  } catch (error) {
    if (error.name === "AbortError") return setText(note, "stopped");
    setText(note, error.message);
    note.className = "said bad";
    note.setAttribute("role", "alert");
  }
}

function keepInView(change) {
  const atEnd = innerHeight + scrollY > document.documentElement.scrollHeight - 60;
  change();
  if (atEnd) scrollTo(0, document.documentElement.scrollHeight);
}

async function ask(prompt) {
  const models = chosen();
  if (!models.length) return showError(byId("error"), new Error("no model is chosen; bring one in with: modelworks pull smollm2-135m"));
  showError(byId("error"), null);
  byId("empty").hidden = true;
  const turn = { prompt, answers: {} }, index = turns.length;
  turns.push(turn);
  const sides = models.map((model) => [model, make("div", { className: "text" }), make("p", { className: "quiet" })]);
  byId("talk").append(make("div", { className: "turn" }, make("p", { className: "you", text: prompt }),
    make("div", { className: "charts" }, ...sides.map(([model, said, note]) => make("article", { className: "card", "aria-label": `Answer of ${model}` }, make("h2", { text: model }), said, note)))));
  scrollTo(0, document.documentElement.scrollHeight);
  stopping = new AbortController();
  busy(true);
  await Promise.all(sides.map(([model, said, note]) => answer(model, turn, index, said, note)));
  stopping = null;
  busy(false);
  byId("prompt").focus();
}

function busy(is) {
  byId("send").hidden = is;
  byId("stop").hidden = !is;
  for (const id of ["retry", "clear"]) byId(id).disabled = is || !turns.length;
  byId("talk").setAttribute("aria-busy", is);
}

function drop() {
  byId("talk").lastChild?.remove();
  return turns.pop();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = byId("prompt").value.trim();
  if (!prompt || stopping) return;
  byId("prompt").value = "";
  ask(prompt);
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("composer").requestSubmit();
});
document.addEventListener("keydown", ({ key }) => { if (key === "Escape") stopping?.abort(); });
byId("stop").addEventListener("click", () => stopping?.abort());
byId("retry").addEventListener("click", () => { const { prompt } = drop(); ask(prompt); });
byId("clear").addEventListener("click", () => {
  while (turns.length) drop();
  byId("empty").hidden = false;
  busy(false);
  byId("prompt").focus();
});
for (const side of SIDES) {
  byId(side).addEventListener("change", () => {
    const asked = new URLSearchParams(SIDES.filter((each) => byId(each).value).map((each) => [each, byId(each).value]));
    history.replaceState(null, "", `?${asked}`);
  });
}

async function begin() {
  const asked = new URLSearchParams(location.search), [models, served] = await Promise.all(["/v1/models", "/modelworks/deployments"].map((path) => fetchJson(path)));
  const names = models.data.map(({ id }) => id);
  const loaded = served.flatMap(({ deployment, adapters }) => [...adapters, deployment.model_name]);
  for (const side of SIDES) {
    const wanted = asked.get(side);
    byId(side).append(...[...new Set([...names, ...(wanted ? [wanted] : [])])].map((name) => make("option", { value: name, text: loaded.includes(name) ? `${name} (loaded)` : name })));
    byId(side).value = wanted ?? (side === "model" ? loaded.find((name) => names.includes(name)) ?? names[0] ?? "" : "");
  }
  if (!names.length) setText(byId("empty"), "No model yet. Bring one in with modelworks pull smollm2-135m, or on the page New job.");
}
begin().catch((error) => showError(byId("error"), error));
