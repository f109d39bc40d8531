// The loss chart: raw and smoothed, epochs marked, a value under the pointer or by the arrow keys.
//
// The server down-samples, so it is a few hundred points however long the training is; where a point stands for several
// steps, a band shows the lowest and highest loss among them.
import { get, Refusal } from "./api.js";
import { Curve, smooth } from "./curve.js";
import { h, s, say, set } from "./dom.js";
import { count, loss } from "./format.js";
import { recall, remember } from "./memory.js";
import { axes, curves, epochMarks, HEIGHT, MARGIN, scales } from "./plot.js";
import { T } from "./texts.js";

const POINTS = 800;
const OFTEN = 1000; // milliseconds
const SELDOM = 10_000;
const AGAIN = 5000; // after a request for an earlier run that nobody answered
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
	#again = 0;
	#closed = false;
	#size;
	wanted = false; // there are steps that were not asked for yet

	constructor(run, resumedFrom) {
		this.#run = run;
		this.plot = s("svg", { class: "plot", role: "presentation" });
		this.tip = h("div", { class: "tip", hidden: true });
		this.frame = h(
			"div",
			{ class: "frame", role: "slider", tabindex: "0", "aria-label": T.chart.slider },
			this.plot,
			this.tip,
		);
		this.note = h("p", { class: "quiet" }, T.chart.reading);
		this.element = h(
			"section",
			{ class: "panel chart", "aria-labelledby": "chart-title" },
			this.#head(resumedFrom),
			this.note,
			this.frame,
		);
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
		clearTimeout(this.#again);
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
			h(
				"div",
				{ class: "tools" },
				h("label", { class: "tick", for: "smoothing" }, T.chart.smoothing, range),
				tick(T.chart.log, this.#log, (on) => remember("log-scale", (this.#log = on))),
				resumedFrom
					? tick(T.chart.earlier, this.#before, (on) => remember("earlier-runs", (this.#before = on)))
					: null,
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
			this.wanted ||= mayPass(error);
		}
		// A server with much to do is asked less often; one that was away must not stop the curve for a minute.
		const pause = Math.min(Math.max(OFTEN, 4 * (performance.now() - begun)), SELDOM);
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

	/** That run and those that it goes on from. What is there is shown, and the rest asked for until it is there, too. */
	async #loadEarlier(run) {
		let next = run;
		try {
			while (next && this.#earlier.length < ANCESTORS && !this.#closed) {
				const curve = new Curve();
				curve.take(await get(`runs/${next}/series`, { points: POINTS }));
				const before = (await get(`runs/${next}`)).summary.resumed_from;
				this.#earlier.push(curve);
				next = before;
			}
		} catch (error) {
			if (!(error instanceof Refusal)) throw error;
			if (mayPass(error) && !this.#closed)
				this.#again = setTimeout(() => void this.#loadEarlier(next), AGAIN);
		}
		this.draw();
	}

	draw() {
		const points = this.#curve.points();
		const above = this.#log ? 0 : -Infinity;
		const usable = this.#curve.points(above);
		this.frame.hidden = usable.length === 0;
		this.note.hidden = usable.length > 0;
		say(
			this.note,
			!this.#curve.width
				? T.chart.reading
				: points.length
					? T.chart.noPositive
					: this.#curve.buckets.length
						? T.chart.noNumber
						: T.chart.empty,
		);
		if (usable.length === 0) return;
		const smoothed = smooth(
			usable.map((point) => point.loss),
			this.#smoothing,
		);
		const width = Math.max(this.frame.clientWidth, 240);
		// What lies beyond the last step is not drawn, so it must not set the scale either.
		const last = usable.at(-1).step;
		const earlier = (this.#before ? this.#earlier : [])
			.map((curve) => curve.points(above).filter((point) => point.step <= last))
			.filter((each) => each.length);
		const scene = scales(usable, smoothed, earlier, width, this.#log);
		this.#scene = { ...scene, points: usable, smoothed };
		set(this.plot, "viewBox", `0 0 ${width} ${HEIGHT}`);
		set(this.plot, "width", width);
		set(this.plot, "height", HEIGHT);
		this.plot.replaceChildren(
			...axes(scene, width),
			...epochMarks(scene, this.#curve.epochs),
			...curves(scene, usable, smoothed, earlier, this.#curve.width > 1),
		);
		this.cross = s(
			"g",
			{ class: "cross", visibility: "hidden" },
			s("line", { y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
			s("circle", { r: 4 }),
		);
		this.plot.append(this.cross);
		this.#describe(usable, smoothed);
		this.#show(this.#at === null ? null : Math.min(this.#at, usable.length - 1));
	}

	#describe(points, smoothed) {
		const lowest = points.reduce((one, other) => (other.loss < one.loss ? other : one));
		const last = points.at(-1);
		set(this.frame, "aria-valuemin", points[0].step);
		set(this.frame, "aria-valuemax", last.step);
		// While it has the focus, every change would be read out.
		if (this.#at === null && document.activeElement !== this.frame) {
			set(this.frame, "aria-valuenow", last.step);
			set(
				this.frame,
				"aria-valuetext",
				T.chart.summary(
					count(last.step),
					loss(last.loss),
					loss(smoothed.at(-1)),
					loss(lowest.loss),
					count(lowest.step),
				),
			);
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
		const to = {
			ArrowLeft: at - 1,
			ArrowRight: at + 1,
			ArrowDown: at - 1,
			ArrowUp: at + 1,
			PageDown: at - far,
			PageUp: at + far,
			Home: 0,
			End: end,
		}[event.key];
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
		const steps =
			point.first === point.step ? count(point.step) : T.chart.range(count(point.first), count(point.step));
		const said = T.chart.tip(steps, this.#curve.epochAt(point.step), loss(point.loss), loss(smoothed[at]));
		say(this.tip, said.join("\n"));
		const beyond = place > right / 2;
		this.tip.style.left = beyond ? "" : `${place + 12}px`;
		this.tip.style.right = beyond ? `${this.frame.clientWidth - place + 12}px` : "";
		set(this.frame, "aria-valuenow", point.step);
		set(this.frame, "aria-valuetext", said.join(", "));
	}
}

/** Nobody has answered, or had no time; what was refused will be refused again. */
function mayPass(refusal) {
	return refusal.status === 0 || refusal.status >= 500;
}
