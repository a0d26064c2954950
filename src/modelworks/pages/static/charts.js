// Lines over steps, drawn by uPlot in the page's colours.

/** The running mean of TensorBoard: `weight` of what was, unbiased at the start. */
export function smoothed(values, weight) {
  let mean = 0, debias = 0;
  return values.map((value) => {
    if (value == null || !Number.isFinite(value)) return null;
    mean = weight * mean + (1 - weight) * value;
    debias = weight * debias + (1 - weight);
    return mean / debias;
  });
}

function colour(name) {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const HEIGHT = 260;
const NICE = [1, 2, 5];

/** Round numbers on a logarithmic axis; within one decade evenly apart, where powers of ten would leave it bare. */
function logSplits(plot, axis, least, most) {
  const first = Math.floor(Math.log10(least)), count = Math.ceil(Math.log10(most)) - first + 1;
  const round = Array.from({ length: count }, (_, index) => NICE.map((nice) => nice * 10 ** (first + index))).flat();
  const inside = round.filter((value) => value >= least && value <= most);
  if (inside.length > 3) return inside;
  const wanted = (most - least) / 3, power = 10 ** Math.floor(Math.log10(wanted));
  const step = power * NICE.findLast((nice) => nice * power <= wanted);
  return Array.from({ length: 12 }, (_, index) => (Math.ceil(least / step) + index) * step).filter((value) => value <= most);
}

/** A chart in `box`; `lines` are {label, token, width, faint, dots}. draw(columns, logScale): the steps, then a column a line, or null. */
export class StepChart {
  constructor(box, lines, format) {
    Object.assign(this, { box, all: lines, lines, format, columns: [[], ...lines.map(() => [])], logScale: false, zoomed: false });
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(box);
    window.addEventListener("theme", () => this.rebuild());
    this.rebuild();
  }

  draw(given, logScale = false) {
    const lines = this.all.filter((line, index) => given[index + 1]), columns = given.filter(Boolean);
    const rebuild = logScale !== this.logScale || lines.length !== this.lines.length || lines.some((line, index) => line !== this.lines[index]);
    this.lines = lines;
    this.logScale = logScale;
    // A logarithm knows no zero.
    this.columns = logScale ? columns.map((values, index) => index ? values.map((value) => value > 0 ? value : null) : values) : columns;
    if (rebuild) return this.rebuild();
    this.plot.setData(this.columns, !this.zoomed);
    if (this.zoomed) this.plot.redraw();
  }

  /** Say what a line is of. */
  call(index, label) {
    if (this.all[index].label === label) return;
    this.all[index].label = label;
    this.rebuild();
  }

  size() {
    return { width: Math.max(200, this.box.clientWidth), height: HEIGHT };
  }

  rebuild() {
    this.plot?.destroy();
    this.zoomed = false;
    const quiet = colour("--quiet"), grid = { stroke: colour("--line"), width: 1 };
    const axis = { stroke: quiet, grid, ticks: grid, font: "12px system-ui, sans-serif" };
    const whole = (plot, splits) => splits.map((value) => Number.isInteger(value) ? String(value) : "");
    this.plot = new window.uPlot({
      ...this.size(),
      scales: { x: { time: false }, y: this.logScale ? { distr: 3, range: (plot, least, most) => least == null ? [1, 10] : [least * 0.95, most * 1.05] } : {} },
      axes: [{ ...axis, values: whole, size: 34 }, { ...axis, size: 64, filter: (plot, splits) => splits, ...(this.logScale ? { splits: logSplits } : {}), values: (plot, splits) => splits.map((value) => value == null ? "" : this.format(value)) }],
      series: [{ label: "Step" }, ...this.lines.map((line) => this.series(line))],
      cursor: { sync: { key: "steps" }, points: { size: 7 } },
      hooks: { setSelect: [(plot) => { this.zoomed = plot.select.width > 0; }] },
    }, this.columns, this.box);
    this.plot.over.addEventListener("dblclick", () => { this.zoomed = false; });
  }

  series({ label, token, width = 2, faint = false, dots = false }) {
    const stroke = colour(token);
    return {
      label, width, stroke, alpha: faint ? 0.35 : 1, spanGaps: true,
      points: { show: (plot) => dots || plot.data[0].length < 2 },
      value: (plot, value) => value == null ? "–" : this.format(value),
    };
  }
}
