// A model or adapter: what it is, its family tree, its pictures and files, and what can be done with it.
import { byId, bytes, copyable, facts, fetchJson, jobLink, make, modelLink, pathOf, plain, press, setText, showError, stateWord, table } from "./show.js";

const LOOK_MS = 3000;
// What of a recipe tells a model from its sisters.
const TOLD = ["source", "revision", "strategy", "tuning", "method", "params", "weights", "dataset", "num_train_epochs", "max_steps", "learning_rate", "lora_r", "seed"];
const name = new URLSearchParams(location.search).get("name") ?? "";
const here = `/modelworks/models/${pathOf(name)}`;
const query = (key, value) => `${key}=${encodeURIComponent(value)}`;

function node({ role, kind, name: called, digest, job_id: job, recipe, metrics, parents }) {
  const all = { ...recipe, ...recipe.spec };
  const settings = TOLD.filter((key) => all[key] != null && all[key] !== "" && JSON.stringify(all[key]) !== "{}").map((key) => `${key} ${plain(all[key])}`).join(", ");
  const measured = Object.entries(metrics).map(([key, value]) => `${key} ${plain(value)}`).join(", ");
  const shown = kind === "dataset" ? make("a", { text: called, href: `/modelworks/data?${query("name", called)}` }) : modelLink(called);
  return make("li", {}, role === "self" ? "" : `${role} `, make("b", {}, shown), make("span", { className: "quiet", text: `  ${kind} ${digest.slice(0, 12)} ` }),
    ...(job ? [jobLink(job, "its job")] : []),
    ...[settings, measured].filter(Boolean).map((text) => make("div", { className: "quiet", text })),
    ...(parents.length ? [make("ul", {}, ...parents.map(node))] : []));
}

function snippets() {
  const origin = location.origin, asked = JSON.stringify({ model: name, messages: [{ role: "user", content: "Hello" }] });
  const texts = {
    curl: `curl ${origin}/v1/chat/completions -H 'Content-Type: application/json' \\\n  -d '${asked.replaceAll("'", "'\\''")}'`,
    Python: `from openai import OpenAI\n\nclient = OpenAI(base_url="${origin}/v1", api_key="none")  # the server's key, if it has one\nanswer = client.chat.completions.create(\n    model=${JSON.stringify(name)}, messages=[{"role": "user", "content": "Hello"}]\n)\nprint(answer.choices[0].message.content)`,
    JavaScript: `const answer = await fetch("${origin}/v1/chat/completions", {\n  method: "POST",\n  headers: { "Content-Type": "application/json" },\n  body: JSON.stringify(${asked}),\n});\nconsole.log((await answer.json()).choices[0].message.content);`,
    "command line": `modelworks chat ${name}`,
  };
  return Object.entries(texts).flatMap(([title, text]) => [make("h3", { text: title }), copyable(text)]);
}

async function look() {
  const served = (await fetchJson("/modelworks/deployments")).find(({ deployment, adapters }) => deployment.model_name === name || adapters.includes(name));
  setText(byId("state"), served ? `${stateWord(served.state)} on ${served.deployment.device}` : "not loaded");
  byId("state").dataset.state = served?.state ?? "";
  byId("load").hidden = Boolean(served);
  byId("unload").hidden = !served;
}

async function begin() {
  if (!name) throw new Error("no model is named; choose one on the start page");
  const found = await fetchJson(here);
  document.title = `${found.name} · Modelworks`;
  setText(byId("name"), found.name);
  setText(byId("about"), `${found.kind}${found.base_name ? ` of ${found.base_name}` : ""} · ${found.id}`);
  byId("facts").replaceChildren(facts({
    architecture: found.architecture, parameters: found.parameters, dtype: found.dtype, size: bytes(found.size_bytes), context: found.context_length && `${found.context_length} tokens`,
    base: found.base_name && modelLink(found.base_name), rank: found.rank, alpha: found.alpha,
    made: new Date(found.created_at).toLocaleString(), job: found.job_id && jobLink(found.job_id), sha256: found.digest, folder: found.path,
  }));
  if (Object.keys(found.metrics).length) byId("metrics").replaceChildren(facts(found.metrics));
  const picture = found.files.find(({ path }) => path === "search.svg" || path === "merge_report.svg")?.path;
  byId("report").hidden = !picture;
  if (picture) {
    setText(byId("report-title"), picture === "search.svg" ? "The search" : "What the merge changed, layer by layer");
    byId("picture").replaceChildren(make("a", { href: `${here}/files/${picture}` }, make("img", { className: "picture", src: `${here}/files/${picture}`, alt: `${picture} of ${found.name}` })));
  }
  byId("files").replaceChildren(table(["File", "Size"], found.files.map(({ path, size_bytes: size }) => [make("a", { text: path, href: `${here}/files/${encodeURIComponent(path)}` }), bytes(size)])));
  byId("snippets").replaceChildren(...snippets());
  for (const [id, address] of Object.entries({
    chat: `/modelworks/chat?${query("model", name)}`, train: `/modelworks/new?kind=train&${query("model", name)}`,
    export: `/modelworks/new?kind=export&${query("model", name)}`, archive: `${here}/archive`,
  })) byId(id).href = address;
  byId("model").hidden = false;
  byId("lineage").replaceChildren(node(await fetchJson(`${here}/lineage`)));
  await look();
  setInterval(() => document.hidden || look().catch(() => {}), LOOK_MS);
}

const act = (id, work) => byId(id).addEventListener("click", ({ target }) => press(target, byId("error"), async () => { await work(); await look(); }));
act("load", () => { setText(byId("state"), "loading …"); return fetchJson("/modelworks/deployments/load", { body: { model: name } }); });
act("unload", () => fetchJson("/modelworks/deployments/unload", { body: { model: name } }));
byId("remove").addEventListener("click", ({ target }) => press(target, byId("error"), async () => {
  if (!confirm(`Remove ${name} from this server, with its files?`)) return;
  await fetchJson(here, { method: "DELETE" });
  location.assign("/modelworks/home");
}));
begin().catch((error) => showError(byId("error"), error));
