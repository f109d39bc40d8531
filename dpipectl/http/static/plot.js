// The drawing of a loss curve: where things lie, and the shapes. It knows of no run and no page.
import { logTicks, short, ticks } from "./curve.js";
import { s } from "./dom.js";
import { T } from "./texts.js";

export const HEIGHT = 260;
export const MARGIN = { left: 58, right: 14, top: 22, bottom: 30 };

/** Where steps and losses lie, for all that is drawn: points {first, step, loss, low, high}. `log`: by powers of ten. */
export function scales(points, smoothed, earlier, width, log) {
	const all = [...points, ...earlier.flat()];
	const losses = [...all.map((point) => point.loss), ...smoothed];
	let low = losses.reduce((one, other) => Math.min(one, other));
	let high = losses.reduce((one, other) => Math.max(one, other));
	if (high - low <= Math.abs(high) * 1e-6)
		[low, high] = [low - Math.abs(low) * 0.1 - 1e-9, high + Math.abs(high) * 0.1 + 1e-9];
	const byTen = log && low > 0;
	const by = byTen ? Math.log10 : (value) => value;
	const space = (by(high) - by(low)) * 0.05;
	const [bottom, top] = [by(low) - space, by(high) + space];
	const first = all.reduce((one, other) => Math.min(one, other.first), Infinity);
	const last = Math.max(points.at(-1).step, first + 1);
	const [right, base] = [width - MARGIN.right, HEIGHT - MARGIN.bottom];
	return {
		first,
		last,
		low,
		high,
		right,
		base,
		byTen,
		x: (step) => MARGIN.left + ((step - first) / (last - first)) * (right - MARGIN.left),
		y: (value) => base - ((by(value) - bottom) / (top - bottom)) * (base - MARGIN.top),
		step: (x) => first + ((x - MARGIN.left) / (right - MARGIN.left)) * (last - first),
	};
}

/** Lines across with their losses, and steps along. */
export function axes(scene, width) {
	const values = scene.byTen ? logTicks(scene.low, scene.high) : ticks(scene.low, scene.high, 5);
	const across = values.slice(0, 12).map((value) => {
		const y = scene.y(value);
		return s(
			"g",
			{},
			s("line", { class: "grid", x1: MARGIN.left, x2: scene.right, y1: y, y2: y }),
			s("text", { class: "mark", x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, axisLoss(value)),
		);
	});
	const along = ticks(scene.first, scene.last, Math.max(Math.floor(width / 110), 2))
		.filter(Number.isInteger)
		.map((step) =>
			s(
				"text",
				{ class: "mark", x: scene.x(step), y: scene.base + 18, "text-anchor": "middle" },
				short(step),
			),
		);
	return [...across, ...along];
}

/** A mark where each epoch begins; as many as there is room for. */
export function epochMarks(scene, epochs) {
	const inside = epochs.filter(([, step]) => step >= scene.first && step <= scene.last);
	const room = (scene.right - MARGIN.left) / Math.max(inside.length, 1);
	// Lines that stand closer than this hide the curve; labels need more room than lines.
	const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((each) => room * each >= 14) ?? 5000;
	const shown = inside.filter(([epoch]) => every === 1 || epoch % every === 0);
	let free = MARGIN.left - 20;
	return shown.map(([epoch, step]) => {
		const x = scene.x(step);
		const label = x >= free;
		if (label) free = x + 30;
		return s(
			"g",
			{},
			s("line", { class: "epoch", x1: x, x2: x, y1: MARGIN.top - 4, y2: scene.base }),
			label ? s("text", { class: "mark", x: x + 2, y: MARGIN.top - 8 }, T.chart.epoch(epoch)) : null,
		);
	});
}

/** The points, parted where steps have no value: a line across would tell losses that there were not. */
function stretches(points) {
	const found = [];
	for (const point of points) {
		if (!found.length || point.apart) found.push([]);
		found.at(-1).push(point);
	}
	return found;
}

/** Earlier runs, the band of what a point stands for, raw and smoothed. `banded`: a point stands for several steps. */
export function curves(scene, points, smoothed, earlier, banded) {
	const { x, y, low } = scene;
	const path = (each, value) =>
		each
			.map(
				(point, at) =>
					`${at && !point.apart ? "L" : "M"}${x(point.step).toFixed(1)} ${y(value(point, at)).toFixed(1)}`,
			)
			.join("");
	const within = (value) =>
		Math.min(Math.max(y(scene.byTen ? Math.max(value, low) : value), MARGIN.top), scene.base);
	const edge = (each, value) =>
		each.map((point) => `${x(point.step).toFixed(1)},${within(value(point)).toFixed(1)}`);
	const parts = stretches(points);
	const bands = (banded ? parts : []).map((each) => [
		...edge(each, (point) => point.high),
		...edge(each, (point) => point.low).reverse(),
	]);
	const before = earlier.map((each) => s("path", { class: "earlier", d: path(each, (point) => point.loss) }));
	// To a point alone leads no line.
	const lone = parts
		.filter((each) => each.length === 1)
		.map(([point]) => s("circle", { class: "dot", cx: x(point.step), cy: y(point.loss), r: 3 }));
	return [
		...before,
		...bands.map((each) => s("polygon", { class: "band", points: each.join(" ") })),
		s("path", { class: "raw", d: path(points, (point) => point.loss) }),
		s("path", { class: "smooth", d: path(points, (_, at) => smoothed[at]) }),
		...lone,
	];
}

function axisLoss(value) {
	if (value === 0) return "0";
	return Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5
		? value.toExponential(0)
		: String(+value.toPrecision(3));
}
