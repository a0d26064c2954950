// What a job ended with: an evaluation's table, a search's leaderboard, a merge's picture, an export's file.
import { byId, facts, make, modelLink, pathOf, plain, table } from "./show.js";

const unique = (values) => [...new Set(values)];

function evaluation({ columns, rows, samples = [] }) {
  const models = unique(rows.map(({ model }) => model)), datasets = unique(rows.map(({ dataset }) => dataset));
  const cell = (model, dataset, column) => plain(rows.find((row) => row.model === model && row.dataset === dataset)?.[column]);
  const used = datasets.flatMap((dataset) => columns.map((column) => [dataset, column]));
  const shown = samples.map((each) => make("pre", { className: "row", tabindex: 0, text: Object.entries(each).map(([key, value]) => `${key}: ${plain(value)}`).join("\n") }));
  return [
    table(["Model", ...used.map(([dataset, column]) => `${dataset}: ${column}`)], models.map((model) => [modelLink(model), ...used.map(([dataset, column]) => cell(model, dataset, column))])),
    ...(shown.length ? [make("details", {}, make("summary", { text: `${shown.length} answers` }), ...shown)] : []),
  ];
}

function search(result, job) {
  const rows = result.leaderboard, goals = result.goals.map(({ name }) => name), paths = unique(rows.flatMap(({ point }) => Object.keys(point)));
  return [
    table(["Rank", "Trial", ...goals, ...paths, "Seconds", ""], rows.map((row) => [
      plain(row.rank), plain(row.trial), ...goals.map((goal) => plain(row.goals[goal])), ...paths.map((path) => plain(row.point[path])), plain(row.seconds),
      row.problem ?? (row.trial === 0 ? "the recipe as it stands" : ""),
    ])),
    ...(result.picture ? [make("img", { className: "picture", src: `/modelworks/jobs/${encodeURIComponent(job.id)}/picture`, alt: "Every trial of the search" })] : []),
  ];
}

function merge(result) {
  const { name, layers, ...told } = result;
  const image = layers?.length ? [make("img", { className: "picture", src: `/modelworks/models/${pathOf(name)}/files/merge_report.svg`, alt: `What the merge changed, layer by layer, in ${layers.length} groups` })] : [];
  return [facts({ result: modelLink(name), ...flat(told) }), ...image.map((each) => make("div", { className: "scroll" }, each))];
}

const flat = (object) => Object.fromEntries(Object.entries(object).map(([key, value]) => [key.replaceAll("_", " "), plain(value)]));

function file(result) {
  const name = result.name ?? "";
  return [facts(flat(result)), make("p", {}, make("a", { text: `Download ${name}`, href: `/modelworks/exports/${pathOf(name)}` }))];
}

const DRAW = { evaluate: evaluation, search, merge, export: file };

/** Show the result of `job`, once it has one; a sweep has its own place. */
export function drawResult(job) {
  const box = byId("result"), text = `${job.id} ${job.finished_at}`;
  box.hidden = !job.result || job.kind === "sweep" || job.state !== "succeeded";
  if (box.hidden || box.dataset.shown === text) return;
  box.dataset.shown = text;
  byId("result-body").replaceChildren(...(DRAW[job.kind] ?? ((result) => [facts(flat(result))]))(job.result, job));
}
