// The live dashboard: the newest training, or the job that ?job= names, followed event by event.
import { StepChart, smoothed } from "./charts.js";
import { follow } from "./live.js";
import { drawResult } from "./result.js";
import { drawSweep } from "./sweep.js";
import { byId, clock, fetchJson, make, number, plain, press, seconds, setText, stateWord } from "./show.js";

const LOOK_MS = 2000;
const DRAW_MS = 150;
const SHOWN_LOGS = 200;
const CONNECTION = { live: "live", lost: "reconnecting…", ended: "" };

const charts = {
  loss: new StepChart(byId("loss-chart"), [
    { label: "Loss", token: "--accent", width: 1.5, faint: true }, { label: "Smooth", token: "--accent", width: 2.5 },
    { label: "Held-out rows", token: "--second", dots: true }, { label: "The other", token: "--warn" },
  ], (value) => number(value)),
  rate: new StepChart(byId("rate-chart"), [{ label: "learning_rate", token: "--second" }], (value) => number(value, 3)),
};
const controls = { smooth: byId("smooth"), weight: byId("weight"), logScale: byId("log-scale"), metric: byId("metric") };
let shown = null; // the job on the page: {id, metrics, progress, state, ...}
let other = null; // the training it is compared with: {id, losses by step}
let wantedMetric = "learning_rate"; // what the second chart shows, where it is told
let stop = () => {};
let pending = 0;

const chosenId = () => new URLSearchParams(location.search).get("job");

/** The one that began last; while none has begun, the one asked for last. */
function newest(jobs) {
  const begun = jobs.filter((job) => job.started_at);
  return begun.sort((one, other) => other.started_at.localeCompare(one.started_at))[0] ?? jobs[0];
}

async function look() {
  try {
    const jobs = (await fetchJson("/modelworks/jobs?kind=train&limit=50")).items;
    fillPicker(jobs);
    const wanted = chosenId();
    const known = jobs.find((job) => job.id === wanted || job.aliases.includes(wanted));
    // Other jobs are in no list of trainings; once they have ended they are as they are.
    const kept = shown?.job.finished_at && [shown.id, ...shown.job.aliases].includes(wanted) ? shown.job : null;
    const job = wanted ? known ?? kept ?? await fetchJson(`/modelworks/jobs/${encodeURIComponent(wanted)}`) : newest(jobs);
    byId("missing").hidden = true;
    byId("empty").hidden = Boolean(job);
    byId("training").hidden = !job;
    if (job && job.id !== shown?.id) open(job);
    if (job && shown) { shown.job = job; draw(); }
  } catch (error) {
    if (error.status === 404) {
      byId("missing").hidden = false;
      byId("training").hidden = true;
      setText(byId("missing-text"), error.message);
    } else if (shown && !shown.ended) connection("lost");
  }
}

function fillPicker(jobs) {
  const picker = byId("picker");
  const entries = jobs.map((job) => [job.id, `${job.spec.name} · ${stateWord(job.state)} · ${clock(job.created_at)}`]);
  const wanted = chosenId() ?? "";
  if (wanted && !jobs.some((job) => job.id === wanted)) entries.push([wanted, shown?.id === wanted ? nameOf(shown.job) : wanted]);
  const text = JSON.stringify(entries);
  if (picker.dataset.entries !== text && document.activeElement !== picker) {
    picker.dataset.entries = text;
    picker.replaceChildren(make("option", { text: "Newest training", value: "" }), ...entries.map(([value, label]) => make("option", { value, text: label })));
  }
  picker.value = wanted;
  const beside = byId("beside"), others = entries.filter(([value]) => value !== shown?.id);
  if (beside.dataset.entries === JSON.stringify(others) || document.activeElement === beside) return;
  beside.dataset.entries = JSON.stringify(others);
  beside.replaceChildren(make("option", { text: "compare with …", value: "" }), ...others.map(([value, label]) => make("option", { value, text: label })));
  beside.value = other?.id ?? "";
}

function open(job) {
  stop();
  shown = { id: job.id, job, metrics: new Map(), progress: {}, metric: {}, state: job.state, failure: job.error?.message, ended: false };
  byId("logs").replaceChildren();
  byId("samples").replaceChildren();
  byId("samples-card").hidden = true;
  byId("error").hidden = true;
  const taken = shown;
  stop = follow(job.id, (event) => taken === shown && take(event), (word) => taken === shown && connection(word));
}

function connection(word) {
  shown.ended = word === "ended";
  setText(byId("connection"), CONNECTION[word]);
  byId("connection").dataset.state = word;
}

function take({ type, at, body }) {
  if (type === "metric") {
    // What is measured on held-out rows comes by itself, at a step that has told its loss.
    shown.metrics.set(body.step, { ...shown.metrics.get(body.step), ...body });
    shown.metric = { ...shown.metric, ...body };
    const { step, epoch, ...numbers } = body, measured = Object.keys(body).some((key) => key.startsWith("eval_"));
    const told = Object.entries(numbers).filter(([key]) => !["step_time", "memory_gb", "tokens_per_second"].includes(key));
    log(at, "info", measured ? `Held-out rows at step ${step}` : `Step ${step} completed`, told.map(([key, value]) => `${key} ${number(value)}`).join("  "));
  } else if (type === "progress") shown.progress = body;
  else if (type === "log") (/^sample at step \d+: /.test(body.message) ? tellSample : log)(at, body.level, body.message);
  else if (type === "state") {
    shown.state = body.state;
    log(at, body.state === "failed" ? "error" : "info", `${shown.job.kind === "train" ? "Training" : "Job"} ${stateWord(body.state)}`, body.reason ?? "");
    if (body.state !== "running" && !shown.job.finished_at) look();
  } else if (type === "artifact") log(at, "info", `Published ${body.name ?? ""}`);
  pending ||= setTimeout(draw, DRAW_MS);
}

function tellSample(at, level, message) {
  const [, step, text] = message.match(/^sample at (step \d+): ([^]*)$/);
  byId("samples-card").hidden = false;
  byId("samples").prepend(make("li", {}, make("b", { text: step }), make("span", { text })));
}

function log(at, level, message, facts = "") {
  const list = byId("logs");
  list.prepend(make("li", { "data-level": level }, make("time", { text: clock(at), datetime: at }), make("b", { text: level }),
    make("span", { text: message }), make("small", { text: facts })));
  while (list.children.length > SHOWN_LOGS) list.lastChild.remove();
}

function draw() {
  clearTimeout(pending);
  pending = 0;
  if (!shown) return;
  drawFacts();
  const losses = other?.losses ?? new Map();
  const steps = [...new Set([...shown.metrics.keys(), ...losses.keys()])].sort((one, two) => one - two);
  const column = (key) => steps.map((step) => shown.metrics.get(step)?.[key] ?? null);
  const own = column("loss"), held = column("eval_loss"), metric = chosenMetric(), drawn = column(metric);
  const weight = controls.smooth.checked ? Number(controls.weight.value) : 0;
  const beside = losses.size ? smoothed(steps.map((step) => losses.get(step) ?? null), weight) : null;
  charts.loss.draw([steps, own, controls.smooth.checked ? smoothed(own, weight) : own, held.some((value) => value != null) ? held : null, beside], controls.logScale.checked);
  charts.rate.call(0, metric);
  charts.rate.draw([steps, drawn]);
  setText(byId("rate-title"), metric);
  const measured = held.findLast((value) => value != null);
  setText(byId("loss-summary"), summary(own, "loss") + (measured == null ? "" : `; held-out rows ${number(measured)}`));
  setText(byId("rate-summary"), summary(drawn, metric));
}

/** The numbers that there are to choose from; as long as the wanted one is not told, the learning rate. */
function chosenMetric() {
  const names = new Set(["learning_rate"]);
  for (const body of shown.metrics.values()) for (const name of Object.keys(body)) names.add(name);
  for (const name of ["step", "epoch", "loss"]) names.delete(name);
  const text = [...names].sort().join();
  if (controls.metric.dataset.names !== text && document.activeElement !== controls.metric) {
    controls.metric.dataset.names = text;
    controls.metric.replaceChildren(...[...names].sort().map((name) => make("option", { text: name, value: name })));
    controls.metric.value = names.has(wantedMetric) ? wantedMetric : "learning_rate";
  }
  return controls.metric.value;
}

function summary(values, name) {
  const known = values.filter((value) => value != null);
  if (!known.length) return `No ${name} yet.`;
  const least = known.reduce((one, other) => Math.min(one, other));
  const most = known.reduce((one, other) => Math.max(one, other));
  return `First ${number(known[0])}, last ${number(known.at(-1))}, least ${number(least)}, most ${number(most)}`;
}

function drawFacts() {
  const { job, state, progress, metric } = shown;
  const isTraining = ["train", "sweep"].includes(job.kind);
  const training = !isTraining || (["steps", "trainings"].includes(progress.unit) && progress.stage !== "preparing");
  const step = Math.max(metric.step ?? 0, training ? progress.done ?? 0 : 0);
  if (training) shown.total = progress.total;
  const total = shown.total ?? job.spec.max_steps;
  const done = state === "succeeded";
  const percent = done ? 100 : total ? Math.min(100, (100 * step) / total) : 0;
  const epochs = job.spec.max_steps || job.kind === "sweep" ? null : job.spec.num_train_epochs;
  const epoch = metric.epoch ?? progress.epoch;
  const far = job.kind === "train" || progress.unit === "bytes" ? "" : `${plain(progress.done)} of ${plain(progress.total)} ${progress.unit}`;
  const stage = state === "running" && progress.unit ? [progress.stage, far].filter(Boolean).map((text) => ` · ${text}`).join("") : "";
  setText(byId("name"), nameOf(job));
  setText(byId("about"), `${aboutOf(job)} · job ${job.id}`);
  byId("tiles").hidden = job.kind !== "train";
  setText(byId("status"), stateWord(state) + stage);
  byId("status").dataset.state = state;
  byId("progress").value = percent;
  setText(byId("step"), total ? `${step} / ${total}` : String(step));
  setText(byId("epoch"), epoch == null ? "–" : number(epoch, 3) + (epochs ? ` / ${epochs}` : ""));
  setText(byId("loss"), number(metric.loss));
  setText(byId("rate"), number(metric.learning_rate, 3));
  setText(byId("speed"), metric.tokens_per_second == null ? "–" : `${number(metric.tokens_per_second, 3)} tok/s`);
  setText(byId("eta"), state === "running" && training ? seconds(progress.eta_seconds) : "–");
  drawSweep(job);
  if (!isTraining) byId("courses").hidden = true;
  drawResult(job);
  drawButtons();
  byId("failure").hidden = !job.error;
  setText(byId("failure-title"), job.kind === "train" ? "The training failed" : "The job failed");
  setText(byId("failure-text"), [job.error?.message, ...(job.error?.problems ?? []).filter((each) => !job.error.message.includes(each))].filter(Boolean).join("\n"));
  document.title = `${Math.floor(percent)} % ${nameOf(job)} · Modelworks`;
}

const nameOf = ({ spec, kind, id }) => spec.name ?? spec.source ?? `${kind} ${id.slice(0, 13)}`;

function aboutOf({ kind, spec }) {
  if (spec.strategy) return `${spec.strategy} of ${spec.model} on ${spec.dataset}`;
  const made = spec.recipe ?? spec;
  const on = spec.datasets ? ` on ${spec.datasets.join(", ")}` : "";
  return `${kind} ${made.method ? `by ${made.method} ` : ""}${plain(made.models ?? made.model ?? made.source)}${on}`;
}

const CAN = { pause: ["running", "queued"], resume: ["paused"], cancel: ["queued", "running", "paused"], retry: ["failed", "cancelled"] };

function drawButtons() {
  const { job, state } = shown;
  for (const [id, states] of Object.entries(CAN)) byId(id).hidden = !states.includes(state);
  byId("clone").href = `/modelworks/new?from=${encodeURIComponent(job.id)}`;
  byId("log-file").href = `/modelworks/jobs/${encodeURIComponent(job.id)}/log`;
  const made = state === "succeeded" && ["train", "sweep", "merge", "search", "pull"].includes(job.kind) && (job.result?.name ?? job.spec.name);
  byId("use").hidden = !made;
  if (made) byId("use").href = `/modelworks/model?name=${encodeURIComponent(made)}`;
}

/** The losses of a training, to be drawn beside those on the page. */
async function compare(id) {
  const losses = new Map();
  for (let after = 0; id;) {
    const { items, next } = await fetchJson(`/modelworks/jobs/${encodeURIComponent(id)}/events?after=${after}`);
    for (const { type, body } of items) if (type === "metric" && body.loss != null) losses.set(body.step, body.loss);
    if (next === after) break;
    after = next;
  }
  other = id ? { id, losses } : null;
  draw();
}

function remember() {
  try {
    localStorage.setItem("charts", JSON.stringify([controls.smooth.checked, controls.weight.value, controls.logScale.checked, wantedMetric]));
  } catch { /* a private window forgets */ }
}

function recall() {
  try {
    const [smooth, weight, logScale, metric] = JSON.parse(localStorage.getItem("charts") ?? "[true, 0.8, false]");
    Object.assign(controls.smooth, { checked: smooth });
    Object.assign(controls.weight, { value: weight });
    Object.assign(controls.logScale, { checked: logScale });
    wantedMetric = metric ?? wantedMetric;
  } catch { /* what was remembered cannot be read: the defaults stand */ }
  controls.weight.disabled = !controls.smooth.checked;
}

recall();
setText(byId("origin"), location.origin);
for (const control of Object.values(controls)) {
  control.addEventListener("input", ({ target }) => {
    if (target === controls.metric) wantedMetric = target.value;
    controls.weight.disabled = !controls.smooth.checked;
    remember();
    draw();
  });
}
byId("picker").addEventListener("change", ({ target }) => {
  history.pushState(null, "", target.value ? `?job=${encodeURIComponent(target.value)}` : location.pathname);
  look();
});
byId("beside").addEventListener("change", ({ target }) => press(target, byId("error"), () => compare(target.value)));
for (const id of Object.keys(CAN)) {
  byId(id).addEventListener("click", ({ target }) => press(target, byId("error"), async () => {
    const job = await fetchJson(`/modelworks/jobs/${encodeURIComponent(shown.id)}/${id}`, { method: "POST" });
    if (id === "retry") open(job); // its events go on behind those that ended it
    await look();
  }));
}
window.addEventListener("popstate", look);
document.addEventListener("visibilitychange", () => document.hidden || look());
look();
setInterval(() => document.hidden || look(), LOOK_MS);
