// A sweep on the dashboard: its trainings, and once it has ended their table and their losses in one picture.
import { byId, make, number, setText, stateWord } from "./show.js";

const link = (id, text) => make("a", { href: `?job=${encodeURIComponent(id)}`, text });
const row = (tag, cells) => make("tr", {}, ...cells.map((cell) => make(tag, {}, cell)));
const shown = (value) => typeof value === "number" ? number(value) : String(value ?? "–");

/** Show what `job` is part of or consists of; anything else than a sweep has only the link to its own. */
export function drawSweep(job) {
  const box = byId("sweep"), children = job.labels.children ?? [];
  const text = JSON.stringify([job.id, job.finished_at]);
  box.hidden = !(children.length || job.labels.sweep);
  byId("courses").hidden = children.length > 0;
  if (box.hidden || box.dataset.shown === text) return;
  box.dataset.shown = text;
  const { table = [], best, metric, picture } = job.result ?? {};
  setText(byId("sweep-title"), children.length ? "Sweep" : "Part of a sweep");
  setText(byId("sweep-best"), best ? `${job.result.name} is ${best}: best ${metric}` : "");
  const listed = children.length ? children.map((id, index) => link(id, `training ${index + 1}`)) : [link(job.labels.sweep, "the whole sweep")];
  byId("sweep-links").replaceChildren(...listed.flatMap((each) => [each, " "]));
  const values = [...new Set(table.flatMap((each) => Object.keys(each.values)))];
  const metrics = [...new Set([...(metric ? [metric] : []), ...table.flatMap((each) => Object.keys(each.metrics))])];
  byId("sweep-table").replaceChildren(...(table.length ? [
    row("th", ["Training", ...values, ...metrics, "Seconds", ""]),
    ...table.map((each) => row("td", [link(each.job, each.name), ...values.map((name) => shown(each.values[name])),
      ...metrics.map((name) => shown(each.metrics[name])), shown(each.seconds), each.problem ?? stateWord(each.state)])),
  ] : []));
  byId("sweep-picture").replaceChildren(...(picture ? [
    make("img", { src: `/modelworks/jobs/${encodeURIComponent(job.id)}/picture`, alt: "Training loss of every training by step" }),
  ] : []));
}
