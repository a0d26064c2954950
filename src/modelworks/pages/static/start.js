// The start page: what the server holds and does, asked from its API.
import { byId, bytes, clock, fetchJson, make, setText, stateWord } from "./show.js";

const LOOK_MS = 3000;

function fill(id, rows) {
  byId(`${id}-empty`).hidden = rows.length > 0;
  byId(id).replaceChildren(...rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell)))));
}

function jobRow({ id, kind, spec, state, created_at: asked }) {
  const name = spec.name ?? id.slice(0, 13);
  const shown = kind === "train" ? make("a", { text: name, href: `/modelworks/dashboard?job=${id}` }) : name;
  return [shown, kind, make("span", { text: stateWord(state), className: "badge", "data-state": state }), clock(asked)];
}

function modelRow({ name, kind, size_bytes: size, files }) {
  const report = files.find(({ path }) => path === "search.svg" || path === "merge_report.svg");
  const link = report && make("a", { text: "report", href: `/modelworks/models/${name}/files/${report.path}` });
  return [name, kind, bytes(size), link ?? ""];
}

async function look() {
  try {
    const [health, jobs, models] = await Promise.all(["health", "jobs?limit=10", "models"].map((path) => fetchJson(`/modelworks/${path}`)));
    setText(byId("health"), `Version ${health.version}.`);
    fill("jobs", jobs.items.map(jobRow));
    fill("models", models.map(modelRow));
  } catch (error) {
    setText(byId("health"), `The server does not answer: ${error.message}`);
  }
}

look();
setInterval(() => document.hidden || look(), LOOK_MS);
