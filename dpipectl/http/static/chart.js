// The loss chart: raw and smoothed, epochs marked, a value under the pointer or by the arrow keys.
//
// The server down-samples, so it is a few hundred points however long the training is; where a point stands for several
// steps, a band shows the lowest and highest loss among them.
import { get, Refusal } from "./api.js";
import { Curve, logTicks, short, smooth, ticks } from "./curve.js";
import { h, s, say, set } from "./dom.js";
import { count, loss } from "./format.js";
import { recall, remember } from "./memory.js";
import { T } from "./texts.js";

const HEIGHT = 260;
const MARGIN = { left: 58, right: 14, top: 22, bottom: 30 };
const POINTS = 800;
const OFTEN = 1000;
const ANCESTORS = 4;

export class Chart {
  #run;
  #curve = new Curve();
  #earlier = []; // curves of the runs that this one goes on from
  #smoothing = recall("smoothing", 0.8);
  #log = recall("log-scale", false);
  #before = recall("earlier-runs", true);
  #at = null; // index of the point that is shown
  #scene = null;
  #busy = false;
  #due = 0;
  #closed = false;
  #size;

  constructor(run, resumedFrom) {
    this.#run = run;
    this.plot = s("svg", { class: "plot", role: "presentation" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.frame = h("div", { class: "frame", role: "slider", tabindex: "0", "aria-label": T.chart.slider }, this.plot, this.tip);
    this.note = h("p", { class: "quiet" }, T.chart.reading);
    this.element = h("section", { class: "panel chart", "aria-labelledby": "chart-title" }, this.#head(resumedFrom), this.note, this.frame);
    this.#size = new ResizeObserver(() => this.draw());
    this.#size.observe(this.frame);
    this.frame.addEventListener("pointermove", (event) => this.#pointed(event.offsetX));
    // A finger's tap moves nothing, and its end is not the end of the reading.
    this.frame.addEventListener("pointerdown", (event) => this.#pointed(event.offsetX));
    this.frame.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && this.#show(null));
    this.frame.addEventListener("blur", () => this.#show(null));
    this.frame.addEventListener("keydown", (event) => this.#pressed(event));
    void this.load();
    if (resumedFrom) void this.#loadEarlier(resumedFrom);
  }

  close() {
    this.#closed = true;
    this.#size.disconnect();
    clearTimeout(this.#due);
  }

  #head(resumedFrom) {
    const range = h("input", { type: "range", min: "0", max: "0.99", step: "0.01", id: "smoothing" });
    range.value = String(this.#smoothing);
    range.addEventListener("input", () => {
      this.#smoothing = Number(range.value);
      remember("smoothing", this.#smoothing);
      this.draw();
    });
    const tick = (label, value, change) => {
      const box = h("input", { type: "checkbox" });
      box.checked = value;
      box.addEventListener("change", () => {
        change(box.checked);
        this.draw();
      });
      return h("label", { class: "tick" }, box, label);
    };
    return h(
      "div",
      { class: "head" },
      h("h2", { id: "chart-title" }, T.chart.title),
      h("div", { class: "tools" },
        h("label", { class: "tick", for: "smoothing" }, T.chart.smoothing, range),
        tick(T.chart.log, this.#log, (on) => remember("log-scale", (this.#log = on))),
        resumedFrom ? tick(T.chart.earlier, this.#before, (on) => remember("earlier-runs", (this.#before = on))) : null,
      ),
    );
  }

  /** Asks for what is new. While an answer is on its way, or the last one is fresh, it waits. */
  async load() {
    if (this.#busy || this.#closed) return;
    this.#busy = true;
    clearTimeout(this.#due);
    const begun = performance.now();
    try {
      const { width, last } = this.#curve;
      const known = width ? { width, after: last } : {};
      this.#curve.take(await get(`runs/${this.#run}/series`, { points: POINTS, ...known }));
      this.draw();
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.wanted = true;
    }
    const pause = Math.max(OFTEN, 4 * (performance.now() - begun));
    this.#due = setTimeout(() => {
      this.#busy = false;
      if (this.wanted) {
        this.wanted = false;
        void this.load();
      }
    }, pause);
  }

  /** There are new steps. */
  refresh() {
    if (this.#busy) this.wanted = true;
    else void this.load();
  }

  async #loadEarlier(run) {
    const found = [];
    try {
      for (let next = run; next && found.length < ANCESTORS; ) {
        const curve = new Curve();
        curve.take(await get(`runs/${next}/series`, { points: POINTS }));
        found.push(curve);
        next = (await get(`runs/${next}`)).summary.resumed_from;
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
    }
    this.#earlier = found;
    this.draw();
  }

  draw() {
    const points = this.#curve.points();
    const usable = this.#log ? points.filter((point) => point.loss > 0) : points;
    this.frame.hidden = usable.length === 0;
    this.note.hidden = usable.length > 0;
    say(this.note, !this.#curve.width ? T.chart.reading : points.length ? T.chart.noPositive : this.#curve.buckets.length ? T.chart.noNumber : T.chart.empty);
    if (usable.length === 0) return;
    const smoothed = smooth(usable.map((point) => point.loss), this.#smoothing);
    const width = Math.max(this.frame.clientWidth, 240);
    const earlier = this.#before ? this.#earlier.map((curve) => curve.points().filter((each) => !this.#log || each.loss > 0)) : [];
    const scene = this.#scales(usable, smoothed, earlier.filter((each) => each.length), width);
    this.#scene = { ...scene, points: usable, smoothed };
    set(this.plot, "viewBox", `0 0 ${width} ${HEIGHT}`);
    set(this.plot, "width", width);
    set(this.plot, "height", HEIGHT);
    this.plot.replaceChildren(...this.#axes(scene, width), ...this.#epochs(scene), ...this.#lines(scene, usable, smoothed, earlier));
    this.cross = s("g", { class: "cross", visibility: "hidden" }, s("line", { y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }), s("circle", { r: 4 }));
    this.plot.append(this.cross);
    this.#describe(usable, smoothed);
    this.#show(this.#at === null ? null : Math.min(this.#at, usable.length - 1));
  }

  #scales(points, smoothed, earlier, width) {
    const all = [...points, ...earlier.flat()];
    const losses = [...all.map((point) => point.loss), ...smoothed];
    let low = losses.reduce((one, other) => Math.min(one, other));
    let high = losses.reduce((one, other) => Math.max(one, other));
    if (high - low <= Math.abs(high) * 1e-6) [low, high] = [low - Math.abs(low) * 0.1 - 1e-9, high + Math.abs(high) * 0.1 + 1e-9];
    const by = this.#log && low > 0 ? Math.log10 : (value) => value;
    const space = (by(high) - by(low)) * 0.05;
    const [bottom, top] = [by(low) - space, by(high) + space];
    const first = all.reduce((one, other) => Math.min(one, other.first), Infinity);
    const last = Math.max(points.at(-1).step, first + 1);
    const [right, base] = [width - MARGIN.right, HEIGHT - MARGIN.bottom];
    return {
      first, last, low, high, right, base,
      x: (step) => MARGIN.left + ((step - first) / (last - first)) * (right - MARGIN.left),
      y: (value) => base - ((by(value) - bottom) / (top - bottom)) * (base - MARGIN.top),
      step: (x) => first + ((x - MARGIN.left) / (right - MARGIN.left)) * (last - first),
    };
  }

  #axes(scene, width) {
    const values = this.#log && scene.low > 0 ? logTicks(scene.low, scene.high) : ticks(scene.low, scene.high, 5);
    const across = values.slice(0, 12).map((value) => {
      const y = scene.y(value);
      return s("g", {},
        s("line", { class: "grid", x1: MARGIN.left, x2: scene.right, y1: y, y2: y }),
        s("text", { class: "mark", x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, axisLoss(value)));
    });
    const along = ticks(scene.first, scene.last, Math.max(Math.floor(width / 110), 2))
      .filter(Number.isInteger)
      .map((step) => s("text", { class: "mark", x: scene.x(step), y: scene.base + 18, "text-anchor": "middle" }, short(step)));
    return [...across, ...along];
  }

  #epochs(scene) {
    const inside = this.#curve.epochs.filter(([, step]) => step >= scene.first && step <= scene.last);
    const room = (scene.right - MARGIN.left) / Math.max(inside.length, 1);
    // Lines that stand closer than this hide the curve; labels need more room than lines.
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((each) => room * each >= 14) ?? 5000;
    const shown = inside.filter(([epoch]) => every === 1 || epoch % every === 0);
    let free = MARGIN.left - 20;
    return shown.map(([epoch, step]) => {
      const x = scene.x(step);
      const label = x >= free;
      if (label) free = x + 30;
      return s("g", {},
        s("line", { class: "epoch", x1: x, x2: x, y1: MARGIN.top - 4, y2: scene.base }),
        label ? s("text", { class: "mark", x: x + 2, y: MARGIN.top - 8 }, T.chart.epoch(epoch)) : null);
    });
  }

  #lines(scene, points, smoothed, earlier) {
    const { x, y, low } = scene;
    const path = (each, value) => each.map((point, at) => `${at ? "L" : "M"}${x(point.step).toFixed(1)} ${y(value(point, at)).toFixed(1)}`).join("");
    const within = (value) => Math.min(Math.max(y(this.#log ? Math.max(value, low) : value), MARGIN.top), scene.base);
    const band = this.#curve.width > 1
      ? points.map((point) => `${x(point.step).toFixed(1)},${within(point.high).toFixed(1)}`)
          .concat(points.map((point) => `${x(point.step).toFixed(1)},${within(point.low).toFixed(1)}`).reverse())
      : null;
    const before = earlier.filter((each) => each.length).map((each) =>
      s("path", { class: "earlier", d: path(each.filter((point) => point.step <= scene.last), (point) => point.loss) }));
    const lone = points.length === 1 ? s("circle", { class: "dot", cx: x(points[0].step), cy: y(points[0].loss), r: 3 }) : null;
    return [
      ...before,
      band ? s("polygon", { class: "band", points: band.join(" ") }) : null,
      s("path", { class: "raw", d: path(points, (point) => point.loss) }),
      s("path", { class: "smooth", d: path(points, (_, at) => smoothed[at]) }),
      lone,
    ].filter(Boolean);
  }

  #describe(points, smoothed) {
    const lowest = points.reduce((one, other) => (other.loss < one.loss ? other : one));
    const last = points.at(-1);
    set(this.frame, "aria-valuemin", points[0].step);
    set(this.frame, "aria-valuemax", last.step);
    // While it has the focus, every change would be read out.
    if (this.#at === null && document.activeElement !== this.frame) {
      set(this.frame, "aria-valuenow", last.step);
      set(this.frame, "aria-valuetext", T.chart.summary(count(last.step), loss(last.loss), loss(smoothed.at(-1)), loss(lowest.loss), count(lowest.step)));
    }
  }

  #pointed(x) {
    if (!this.#scene) return;
    const step = this.#scene.step(x);
    const { points } = this.#scene;
    let [left, right] = [0, points.length - 1];
    while (left < right) {
      const middle = (left + right) >> 1;
      if (points[middle].step < step) left = middle + 1;
      else right = middle;
    }
    const nearer = left > 0 && step - points[left - 1].step < points[left].step - step ? left - 1 : left;
    this.#show(nearer);
  }

  #pressed(event) {
    if (!this.#scene) return;
    const end = this.#scene.points.length - 1;
    const at = this.#at ?? end;
    const far = Math.max(Math.round(end / 20), 1);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowDown: at - 1, ArrowUp: at + 1, PageDown: at - far, PageUp: at + far, Home: 0, End: end }[event.key];
    if (event.key === "Escape") this.#show(null);
    if (to === undefined) return;
    event.preventDefault();
    this.#show(Math.min(Math.max(to, 0), end));
  }

  #show(at) {
    this.#at = at;
    this.tip.hidden = at === null;
    if (!this.#scene || !this.cross) return;
    set(this.cross, "visibility", at === null ? "hidden" : "visible");
    if (at === null) return;
    const { points, smoothed, x, y, right } = this.#scene;
    const point = points[at];
    const place = x(point.step);
    const [line, dot] = this.cross.children;
    set(line, "x1", place);
    set(line, "x2", place);
    set(dot, "cx", place);
    set(dot, "cy", y(smoothed[at]));
    const steps = point.first === point.step ? count(point.step) : T.chart.range(count(point.first), count(point.step));
    const said = T.chart.tip(steps, this.#curve.epochAt(point.step), loss(point.loss), loss(smoothed[at]));
    say(this.tip, said.join("\n"));
    const beyond = place > right / 2;
    this.tip.style.left = beyond ? "" : `${place + 12}px`;
    this.tip.style.right = beyond ? `${this.frame.clientWidth - place + 12}px` : "";
    set(this.frame, "aria-valuenow", point.step);
    set(this.frame, "aria-valuetext", said.join(", "));
  }
}

function axisLoss(value) {
  if (value === 0) return "0";
  return Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5 ? value.toExponential(0) : String(+value.toPrecision(3));
}
