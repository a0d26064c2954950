// The live dashboard: the newest training, or the one that ?job= names, followed event by event.
import { StepChart, smoothed } from "./charts.js";
import { follow } from "./live.js";
import { drawSweep } from "./sweep.js";
import { byId, clock, fetchJson, make, number, seconds, setText, stateWord } from "./show.js";

const LOOK_MS = 2000;
const DRAW_MS = 150;
const SHOWN_LOGS = 200;
const CONNECTION = { live: "live", lost: "reconnecting…", ended: "" };

const charts = {
  loss: new StepChart(byId("loss-chart"), [
    { label: "Loss", token: "--accent", width: 1.5, faint: true }, { label: "Smooth", token: "--accent", width: 2.5 },
  ], (value) => number(value)),
  rate: new StepChart(byId("rate-chart"), [{ label: "Learning rate", token: "--second" }], (value) => number(value, 3)),
};
const controls = { smooth: byId("smooth"), weight: byId("weight"), logScale: byId("log-scale") };
let shown = null; // the training on the page: {id, metrics, progress, state, ...}
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
    // A sweep is in no list of trainings; what it ends with is asked for once.
    const kept = shown?.job.kind === "sweep" && !shown.job.finished_at ? null : shown?.job;
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
  if (wanted && !jobs.some((job) => job.id === wanted)) entries.push([wanted, wanted]);
  const text = JSON.stringify(entries);
  if (picker.dataset.entries !== text && document.activeElement !== picker) {
    picker.dataset.entries = text;
    picker.replaceChildren(make("option", { text: "Newest training", value: "" }), ...entries.map(([value, label]) => make("option", { value, text: label })));
  }
  picker.value = wanted;
}

function open(job) {
  stop();
  shown = { id: job.id, job, metrics: new Map(), progress: {}, metric: {}, state: job.state, failure: job.error?.message, ended: false };
  byId("logs").replaceChildren();
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
    shown.metrics.set(body.step, body);
    shown.metric = body;
    log(at, "info", `Step ${body.step} completed`, ["loss", "learning_rate", "grad_norm"].filter((key) => key in body)
      .map((key) => `${key} ${number(body[key])}`).join("  "));
  } else if (type === "progress") shown.progress = body;
  else if (type === "log") log(at, body.level, body.message);
  else if (type === "state") {
    shown.state = body.state;
    log(at, body.state === "failed" ? "error" : "info", `Training ${stateWord(body.state)}`, body.reason ?? "");
    if (body.state === "failed") look();
  } else if (type === "artifact") log(at, "info", `Published ${body.name ?? ""}`);
  pending ||= setTimeout(draw, DRAW_MS);
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
  const steps = [...shown.metrics.keys()].sort((one, other) => one - other);
  const column = (key) => steps.map((step) => shown.metrics.get(step)[key] ?? null);
  const losses = column("loss"), rates = column("learning_rate");
  const weight = controls.smooth.checked ? Number(controls.weight.value) : 0;
  charts.loss.draw([steps, losses, controls.smooth.checked ? smoothed(losses, weight) : losses], controls.logScale.checked);
  charts.rate.draw([steps, rates]);
  setText(byId("loss-summary"), summary(losses, "loss"));
  setText(byId("rate-summary"), summary(rates, "learning rate"));
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
  const training = ["steps", "trainings"].includes(progress.unit) && progress.stage !== "preparing";
  const step = Math.max(metric.step ?? 0, training ? progress.done : 0);
  if (training) shown.total = progress.total;
  const total = shown.total ?? job.spec.max_steps;
  const done = state === "succeeded";
  const percent = done ? 100 : total ? Math.min(100, (100 * step) / total) : 0;
  const epochs = job.spec.max_steps || job.kind === "sweep" ? null : job.spec.num_train_epochs;
  const epoch = metric.epoch ?? progress.epoch;
  const stage = state === "running" && progress.stage ? ` · ${progress.stage}` : "";
  setText(byId("name"), job.spec.name);
  setText(byId("about"), `${job.spec.strategy} of ${job.spec.model} on ${job.spec.dataset} · job ${job.id}`);
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
  byId("failure").hidden = !job.error;
  setText(byId("failure-text"), job.error?.message ?? "");
  document.title = `${Math.floor(percent)} % ${job.spec.name} · Modelworks`;
}

function remember() {
  try {
    localStorage.setItem("charts", JSON.stringify([controls.smooth.checked, controls.weight.value, controls.logScale.checked]));
  } catch { /* a private window forgets */ }
}

function recall() {
  try {
    const [smooth, weight, logScale] = JSON.parse(localStorage.getItem("charts") ?? "[true, 0.8, false]");
    Object.assign(controls.smooth, { checked: smooth });
    Object.assign(controls.weight, { value: weight });
    Object.assign(controls.logScale, { checked: logScale });
  } catch { /* what was remembered cannot be read: the defaults stand */ }
  controls.weight.disabled = !controls.smooth.checked;
}

recall();
setText(byId("origin"), location.origin);
for (const control of Object.values(controls)) {
  control.addEventListener("input", () => { controls.weight.disabled = !controls.smooth.checked; remember(); draw(); });
}
byId("picker").addEventListener("change", ({ target }) => {
  history.pushState(null, "", target.value ? `?job=${encodeURIComponent(target.value)}` : location.pathname);
  look();
});
window.addEventListener("popstate", look);
document.addEventListener("visibilitychange", () => document.hidden || look());
look();
setInterval(() => document.hidden || look(), LOOK_MS);
