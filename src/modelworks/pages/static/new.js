// A new job: a form made from the API's own description of it, beside the command and the file that ask for the same.
import { byId, bytes, copyable, facts, fetchJson, make, press, seconds, setText, showError } from "./show.js";
import { parseSpec, toCommand, toYaml } from "./yaml.js";

const KINDS = {
  train: "Fine-tune a model", sweep: "Sweep: fine-tune with several settings", merge: "Merge models",
  search: "Search for a merge's best weights", evaluate: "Evaluate", export: "Export as GGUF", pull: "Bring a model in",
};
// What is asked first; the rest is folded away.
const FIRST = [
  "model", "dataset", "strategy", "method", "base", "models", "weights", "datasets", "metrics", "recipe", "sweep", "sweep_metric", "source", "to", "name",
  "num_train_epochs", "max_steps", "learning_rate", "lora_r", "eval_steps", "sample_prompts", "merge", "export_gguf", "trials", "limit",
];
const CHECKS = { train: ["Estimate", "/modelworks/train/estimate"], merge: ["Check", "/modelworks/merge/plan"] };
const COMMANDS = { train: "train", sweep: "train", merge: "merge", search: "merge search", evaluate: "eval" };
const NAMES = { model: "models", base: "models", reward_model: "models", source: "sources", dataset: "datasets" };
const LISTS = { models: "models", datasets: "datasets" };
const PLUGINS = { strategy: "strategies", method: "methods" };

const known = {}; // names by what they are
let kinds, plugins;
let spec = {}; // only what differs from the defaults

const schemaOf = (kind) => kinds[kind];
/** The ways in which a field may be given, without null. */
const ways = (field) => (field.anyOf ?? [field]).filter(({ type }) => type !== "null");
const isEmpty = (value) => value == null || value === "" || (typeof value === "object" && !Object.keys(value).length);
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/** What a text means: a number, true, a list ... else itself. */
function meant(text) {
  try { return JSON.parse(text); } catch { return text; }
}

const pairs = (text) => Object.fromEntries(text.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => {
  const [key, ...rest] = line.split("=");
  return [key.trim(), meant(rest.join("=").trim())];
}));
const asPairs = (value) => Object.entries(value).map(([key, inner]) => `${key}=${typeof inner === "string" ? inner : JSON.stringify(inner)}`).join("\n");

function choice(values, shown, standard) {
  const words = standard == null ? [["", "–"]] : [];
  return make("select", {}, ...words.concat(values.map((value) => [value, value === standard ? `${value} (default)` : value])).map(([value, text]) => {
    const option = make("option", { value, text });
    option.selected = value === (shown ?? standard ?? "");
    return option;
  }));
}

function checklist(name, shown) {
  const names = [...new Set([...(known[LISTS[name]] ?? []), ...(shown ?? [])])];
  const boxes = names.map((each) => {
    const box = make("input", { type: "checkbox", value: each });
    box.checked = Boolean(shown?.includes(each));
    return make("label", {}, box, each);
  });
  return make("div", { className: "checklist" }, ...(boxes.length ? boxes : [make("small", { text: "none yet" })]));
}

const ticked = (box) => [...box.querySelectorAll("input:checked")].map(({ value }) => value);

/** The control of a field, and how its value is read; undefined where it is left alone. */
function control(name, field, shown) {
  const given = ways(field), types = new Set(given.map(({ type }) => type));
  const values = given.find((each) => each.enum)?.enum ?? (PLUGINS[name] && known[PLUGINS[name]]);
  const typed = (node, read) => [node, () => node.value.trim() === "" ? undefined : read(node.value.trim())];
  if (types.has("boolean")) {
    const box = make("input", { type: "checkbox" });
    box.checked = shown ?? field.default ?? false;
    return [box, () => box.checked];
  }
  if (values) {
    const node = choice(values, shown, field.default);
    return [node, () => node.value === "" ? undefined : node.value];
  }
  if (LISTS[name] && types.has("array")) {
    const box = checklist(name, shown ?? field.default);
    return [box, () => ticked(box)];
  }
  if (types.has("array") && given.find(({ items }) => items)?.items.enum) {
    known[name] = given.find(({ items }) => items).items.enum;
    LISTS[name] = name;
    const box = checklist(name, shown ?? field.default);
    return [box, () => ticked(box)];
  }
  const isText = given.every((each) => !each.type || ["array", "object"].includes(each.type));
  if (isText) {
    const texts = given.some(({ type, items }) => type === "array" && ["string", "number"].includes(items?.type));
    const mapping = given.some(({ type, additionalProperties }) => type === "object" && additionalProperties);
    const text = shown == null ? "" : texts ? shown.join("\n") : mapping ? asPairs(shown) : JSON.stringify(shown, null, 1);
    const node = make("textarea", { rows: 2, placeholder: texts ? "one a line" : mapping ? "KEY=VALUE, one a line" : "JSON" });
    node.value = text;
    const lines = (all) => all.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => given.some(({ items }) => items?.type === "number") ? meant(line) : line);
    return typed(node, texts ? lines : mapping ? pairs : meant);
  }
  const numeric = types.has("number") || types.has("integer");
  const node = make("input", { type: "text", placeholder: field.default ?? "", autocomplete: "off", ...(numeric && { inputmode: "decimal" }), ...(NAMES[name] && { list: NAMES[name] }) });
  if (shown != null) node.value = typeof shown === "object" ? JSON.stringify(shown) : shown;
  const several = (text) => /\s/.test(text) && !text.startsWith("[") ? text.split(/\s+/) : meant(text);
  return typed(node, numeric ? meant : types.has("array") ? several : (text) => text.startsWith("{") ? meant(text) : text);
}

/** A field on the form; a change is kept in `into`, an undefined value and the default leave it out. */
function fieldOf(name, field, into, required) {
  const [node, read] = control(name, field, into[name]);
  node.addEventListener("input", () => {
    const value = read();
    if (isEmpty(value) && value !== false || same(value, field.default ?? (field.type === "boolean" ? false : undefined))) delete into[name];
    else into[name] = value;
    if (PLUGINS[name]) { delete spec.params; drawParams(); }
    drawSame();
  });
  const about = make("small", { text: field.description ?? "" });
  const head = make("b", { text: name + (required ? " *" : "") });
  const isGroup = node.className === "checklist";
  const frame = make(isGroup ? "div" : "label", { className: "field", "data-field": name, ...(isGroup && { role: "group", "aria-label": name }) }, head, node, about);
  if (node.type === "checkbox") frame.classList.add("tick");
  return frame;
}

const kindNow = () => byId("kind").value;

function drawForm() {
  const kind = kindNow(), schema = schemaOf(kind);
  setText(byId("about"), schema.description ?? "");
  const order = (name) => FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length;
  const names = Object.keys(schema.properties).filter((name) => name !== "params" && schema.properties[name].const === undefined).sort((one, other) => order(one) - order(other));
  const drawn = (list) => list.map((name) => fieldOf(name, schema.properties[name], spec, schema.required?.includes(name)));
  byId("first").replaceChildren(...drawn(names.filter((name) => FIRST.includes(name))));
  byId("rest").replaceChildren(...drawn(names.filter((name) => !FIRST.includes(name))));
  byId("more").hidden = !byId("rest").children.length;
  byId("check").hidden = !CHECKS[kind];
  setText(byId("check"), CHECKS[kind]?.[0] ?? "");
  byId("estimate").replaceChildren();
  showError(byId("error"), null);
  drawParams();
  drawSame();
}

/** The settings of the strategy or method that is chosen. */
function drawParams() {
  const schema = schemaOf(kindNow());
  const key = Object.keys(PLUGINS).find((name) => name in schema.properties);
  const chosen = key && plugins[PLUGINS[key]].find(({ name }) => name === (spec[key] ?? schema.properties[key].default));
  byId("own").hidden = !chosen;
  if (!chosen) return;
  const into = { ...spec.params };
  const fields = Object.entries(chosen.parameters?.properties ?? {});
  setText(byId("own-title"), `Settings of ${chosen.name}`);
  setText(byId("own-about"), chosen.description);
  byId("params").replaceChildren(...fields.map(([name, field]) => fieldOf(name, field, into, chosen.parameters.required?.includes(name))));
  byId("params").oninput = () => {
    if (isEmpty(into)) delete spec.params;
    else spec.params = into;
    drawSame();
  };
}

function drawSame() {
  const kind = kindNow(), command = toCommand(kind, spec);
  byId("command").replaceChildren(copyable(command ?? `modelworks ${COMMANDS[kind]} spec.yaml`));
  setText(byId("file-use"), COMMANDS[kind] ? `spec.yaml, for modelworks ${COMMANDS[kind]} spec.yaml` : `for POST /modelworks/${kind}, as JSON`);
  byId("yaml").replaceChildren(copyable(COMMANDS[kind] ? toYaml(spec) : JSON.stringify(spec, null, 2)));
}

function drawEstimate(found) {
  const sizes = (each) => Object.fromEntries(Object.entries(each).map(([key, value]) => [key.replace(/_bytes$|^bytes_/, "").replaceAll("_", " "),
    value == null ? null : typeof value === "object" ? Object.entries(value).map(([part, size]) => `${part.replaceAll("_", " ")} ${bytes(size)}`).join(", ")
      : /bytes|memory_there_is/.test(key) ? bytes(value) : key === "seconds" ? seconds(value) : value]));
  const { notes = [], ...rest } = found;
  byId("estimate").replaceChildren(facts(sizes(rest)), ...notes.map((text) => make("p", { text, className: "quiet" })));
}

const box = byId("error");
byId("check").addEventListener("click", ({ target }) => press(target, box, async () => drawEstimate(await fetchJson(CHECKS[kindNow()][1], { body: spec }))));
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  press(event.submitter ?? byId("form").querySelector("[type=submit]"), box, async () => {
    const job = await fetchJson(`/modelworks/${kindNow()}`, { body: spec });
    location.assign(`/modelworks/dashboard?job=${encodeURIComponent(job.id)}`);
  });
});
byId("kind").addEventListener("change", () => {
  const fields = schemaOf(kindNow()).properties;
  spec = Object.fromEntries(Object.entries(spec).filter(([name]) => name in fields && name !== "params"));
  drawForm();
});
byId("file").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  if (!file) return;
  try {
    spec = parseSpec(await file.text());
    if (spec.sweep && kindNow() === "train") byId("kind").value = "sweep";
    drawForm();
    const strange = Object.keys(spec).filter((name) => !(name in schemaOf(kindNow()).properties));
    if (strange.length) showError(box, new Error(`${file.name}: no field of the form is called ${strange.join(", ")}; it is sent as it stands`));
  } catch (error) {
    showError(box, new Error(`${file.name}: ${error.message}`));
  }
  target.value = "";
});

async function begin() {
  const asked = new URLSearchParams(location.search);
  const [found, listed, models, datasets] = await Promise.all(["kinds", "plugins", "models", "datasets"].map((path) => fetchJson(`/modelworks/${path}`)));
  [kinds, plugins] = [found, listed];
  Object.assign(known, {
    models: models.map(({ name }) => name), datasets: datasets.map(({ name }) => name), sources: ["smollm2-135m"],
    ...Object.fromEntries(["strategies", "methods", "metrics"].map((each) => [each, plugins[each].map(({ name }) => name)])),
  });
  LISTS.metrics = "metrics";
  for (const list of ["models", "datasets", "sources"]) {
    document.body.append(make("datalist", { id: list }, ...known[list].map((value) => make("option", { value }))));
  }
  byId("kind").replaceChildren(...Object.entries(KINDS).map(([value, text]) => make("option", { value, text })));
  const { from } = Object.fromEntries(asked);
  if (from) {
    const job = await fetchJson(`/modelworks/jobs/${encodeURIComponent(from)}`);
    byId("kind").value = job.kind;
    spec = unset(job);
  } else {
    byId("kind").value = asked.get("kind") in KINDS ? asked.get("kind") : "train";
    for (const name of ["model", "dataset", "base"]) if (asked.get(name)) spec[name] = asked.get(name);
  }
  drawForm();
}

/** What a job was asked for, without what is so anyhow and without its name, which is taken. */
function unset({ kind, spec: asked }) {
  const { properties } = schemaOf(kind);
  return Object.fromEntries(Object.entries(asked).filter(([name, value]) => name in properties && name !== "name" && !isEmpty(value) && !same(value, properties[name].default)));
}

begin().catch((error) => showError(box, error));
