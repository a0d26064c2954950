// The start page: what the server holds, serves and does, asked from its API.
import { badge, byId, bytes, clock, fetchJson, jobLink, make, modelLink, number, plain, press, setText, table } from "./show.js";

const LOOK_MS = 3000;
let mostJobs = 10;

function fill(id, rows) {
  byId(`${id}-empty`).hidden = rows.length > 0;
  byId(id).replaceChildren(...rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell)))));
}

const jobRow = ({ id, kind, spec, state, created_at: asked }) => [jobLink(id, spec.name ?? id.slice(0, 13)), kind, badge(state), clock(asked)];

const modelRow = ({ name, kind, size_bytes: size }) => [
  modelLink(name), kind, bytes(size), make("a", { text: "chat", href: `/modelworks/chat?model=${encodeURIComponent(name)}`, "aria-label": `Chat with ${name}` }),
];

function servedRow({ deployment, state, adapters, replicas, stats, tokens_per_second: speed, until, error }) {
  const sum = (key) => stats.reduce((all, each) => all + each[key], 0);
  const unload = make("button", { type: "button", text: "Unload", "aria-label": `Unload ${deployment.model_name}` });
  unload.addEventListener("click", () => press(unload, byId("error"), () => fetchJson("/modelworks/deployments/unload", { body: { model: deployment.model_name } })).then(look));
  return [
    make("span", {}, modelLink(deployment.model_name), ...adapters.flatMap((name) => [", ", modelLink(name)])),
    make("span", { title: error ?? deployment.engine_reason }, badge(state), ` ${deployment.engine}, ${replicas.map(({ device }) => device).join(" ")}`),
    `${sum("running")} + ${sum("waiting")}`, number(speed, 3), `${plain(sum("kv_used_tokens"))} / ${plain(sum("kv_total_tokens"))}`,
    bytes(replicas.reduce((all, each) => all + each.rss_bytes, 0)), until ? clock(until) : "it is unloaded", unload,
  ];
}

function drawServed(served) {
  // A button that is at work stays where it is, and one that has the focus keeps it.
  if (byId("serving").querySelector("button:disabled")) return;
  const focused = byId("serving").contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
  byId("serving").replaceChildren(served.length
    ? table(["Model, adapters", "Engine", "Answering + waiting", "Tokens a second", "Cache, tokens", "Memory", "Stays until", ""], served.map(servedRow))
    : make("p", { className: "quiet", text: "Nothing yet: a model is loaded when it is asked for the first time, or on its page." }));
  if (focused) byId("serving").querySelector(`[aria-label=${CSS.escape(focused)}]`)?.focus();
}

async function look() {
  try {
    const paths = ["health", `jobs?limit=${mostJobs}`, "models", "deployments?stats=true"];
    const [health, jobs, models, served] = await Promise.all(paths.map((path) => fetchJson(`/modelworks/${path}`)));
    setText(byId("health"), `Version ${health.version}.`);
    fill("jobs", jobs.items.map(jobRow));
    byId("more").hidden = !jobs.next || mostJobs === 1000;
    fill("models", models.map(modelRow));
    drawServed(served);
  } catch (error) {
    setText(byId("health"), `The server does not answer: ${error.message}`);
  }
}

byId("more").addEventListener("click", () => {
  mostJobs = Math.min(1000, mostJobs * 4);
  look();
});
look();
setInterval(() => document.hidden || look(), LOOK_MS);
