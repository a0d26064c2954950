// Datasets: upload one or only look at it, see lengths, what is cut, what is wrong by line, and rows as a model reads them.
import { byId, bytes, facts, fetchJson, make, number, pathOf, press, setText, showError, table } from "./show.js";

const link = (name) => make("a", { text: name, href: `?name=${encodeURIComponent(name)}` });

function drawList(datasets) {
  byId("list").replaceChildren(datasets.length
    ? table(["Name", "Format", "To train on", "Held out", "Size", ""], datasets.map((each) => [
      link(each.name), each.format, number(each.train_rows, 9), number(each.validation_rows, 9), bytes(each.size_bytes),
      make("a", { text: "train", href: `/modelworks/new?kind=train&dataset=${encodeURIComponent(each.name)}`, "aria-label": `Train on ${each.name}` }),
    ]))
    : make("p", { className: "quiet", text: "None yet. Choose a file above." }));
}

function lengths({ unit, buckets, rows_measured: rows }) {
  const most = Math.max(1, ...buckets.map((each) => each.rows));
  return table([unit, "Rows", ""], buckets.map((each) => [
    `${each.at_least}–${each.below - 1}`, number(each.rows, 9), make("meter", { min: 0, max: most, value: each.rows, "aria-label": `${each.rows} of ${rows} rows` }),
  ]));
}

function sample(parts) {
  const shown = parts.map(({ text, learned, cut }) => make(cut ? "s" : learned ? "mark" : "span", { text }));
  return make("pre", { className: "row", tabindex: 0 }, ...shown);
}

/** What an import found, and how its rows look. */
function drawSeen(title, report, preview) {
  const lines = [...(report.notes ?? []), ...(report.problems ?? []).map(({ where, what, remedy }) => [where, what, remedy].filter(Boolean).join(": "))];
  byId("seen").hidden = false;
  byId("seen").replaceChildren(
    make("h2", { text: title }),
    facts({
      format: report.format, columns: report.columns, "to train on": report.train_rows, "held out": report.validation_rows,
      "left out, bad": report.bad_rows, "left out, empty": report.empty_rows, duplicates: report.duplicate_rows, "on both sides": report.leaked_rows,
      [`${preview.unit} a row, median`]: preview.p50, "95 % have at most": preview.p95, longest: preview.max, "kept of a row": preview.max_length,
      "rows that lose their end": preview.truncated_rows, "rows that keep nothing to learn": preview.masked_rows,
    }),
    ...lines.map((text) => make("p", { className: "said", text })),
    lengths(preview),
    make("p", { className: "quiet", text: preview.unit === "tokens" ? "Rows as the model reads them. Marked: what is learned; struck out: what is cut off." : "Rows as they are. Choose a model to see them as it reads them." }),
    ...preview.samples.map(sample),
  );
}

async function show(name, model) {
  const asked = model ? `?model=${encodeURIComponent(model)}` : "";
  const [dataset, preview] = await Promise.all([`/modelworks/datasets/${pathOf(name)}`, `/modelworks/datasets/${pathOf(name)}/preview${asked}`].map((path) => fetchJson(path)));
  drawSeen(dataset.name, dataset, preview);
}

const wanted = new URLSearchParams(location.search).get("name");
byId("model").addEventListener("change", ({ target }) => {
  if (wanted && !byId("file").files.length) show(wanted, target.value).catch((error) => showError(byId("error"), error));
});
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const body = new FormData(event.target, event.submitter);
  const file = body.get("file");
  for (const [key, value] of [...body]) if (!value) body.delete(key);
  const columns = byId("columns").value.split(",").map((pair) => pair.split("=").map((word) => word.trim())).filter(([key]) => key);
  if (columns.length) body.append("columns", JSON.stringify(Object.fromEntries(columns)));
  setText(byId("progress"), "reading …");
  press(event.submitter, byId("error"), async () => {
    const { dataset, report, preview } = await fetchJson("/modelworks/datasets", { body });
    drawSeen(dataset ? dataset.name : `${file.name}: nothing was kept`, report, preview);
    drawList(await fetchJson("/modelworks/datasets"));
  }).finally(() => setText(byId("progress"), ""));
});

async function begin() {
  const [datasets, models, plugins] = await Promise.all(["datasets", "models", "plugins"].map((path) => fetchJson(`/modelworks/${path}`)));
  drawList(datasets);
  byId("model").append(...models.map(({ name }) => make("option", { value: name, text: name })));
  byId("format").append(...plugins.formats.map(({ name }) => make("option", { value: name, text: name })));
  if (wanted) await show(wanted, "");
}
begin().catch((error) => showError(byId("error"), error));
