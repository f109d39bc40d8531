// A loss curve as the server down-samples it: buckets of steps, brought up to date piece by piece.

import { T } from "./texts.js";

/** Buckets are [first step, last step, mean, low, high]; the last three are null where no loss was a number. */
export class Curve {
	width = 0;
	buckets = [];
	epochs = [];
	last = null;
	over = false;

	/** Takes an answer of the server: all buckets, or those from the first given on. */
	take(series) {
		if (series.whole || series.width !== this.width) {
			this.buckets = series.points;
		} else if (series.points.length) {
			const from = series.points[0][0];
			let keep = this.buckets.length;
			while (keep > 0 && this.buckets[keep - 1][0] >= from) keep -= 1;
			this.buckets = [...this.buckets.slice(0, keep), ...series.points];
		}
		this.width = series.width;
		this.epochs = series.epochs;
		this.last = series.last;
		this.over = series.eof;
	}

	/** Points with a value above that: {step, first, loss, low, high, apart}. `apart`: steps before it have none. */
	points(above = -Infinity) {
		const found = [];
		let apart = false;
		for (const [first, step, loss, low, high] of this.buckets) {
			if (loss === null || loss <= above) {
				apart = true;
			} else {
				found.push({ first, step, loss, low, high, apart });
				apart = false;
			}
		}
		return found;
	}

	/** The epoch that a step belongs to, or null. */
	epochAt(step) {
		let found = null;
		for (const [epoch, first] of this.epochs) if (first <= step) found = epoch;
		return found;
	}
}

/** An exponential average that begins at the first value instead of at zero. `weight` 0 to below 1. */
export function smooth(values, weight) {
	let sum = 0;
	let total = 0;
	return values.map((value) => {
		sum = sum * weight + (1 - weight) * value;
		total = total * weight + (1 - weight);
		return sum / total;
	});
}

/** About `wanted` round numbers from low to high. */
export function ticks(low, high, wanted) {
	const rough = (high - low) / Math.max(wanted, 1);
	if (!(rough > 0)) return [low];
	const power = 10 ** Math.floor(Math.log10(rough));
	const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
	const found = [];
	for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
	return found;
}

/** Round numbers for an axis by powers of ten. */
export function logTicks(low, high) {
	const found = [];
	const decades = Math.log10(high / low);
	const steps = decades > 4 ? [1] : decades > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
	for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
		for (const each of steps) {
			const at = each * 10 ** power;
			if (at >= low && at <= high) found.push(at);
		}
	}
	return found.length > 1 ? found : ticks(low, high, 4);
}

/** A step's tick: 1200 → `1.2k`. */
export function short(number) {
	if (number >= 1e6) return `${+(number / 1e6).toFixed(2)}${T.units.million}`;
	if (number >= 1e4) return `${+(number / 1e3).toFixed(1)}${T.units.thousand}`;
	return String(+number.toPrecision(6));
}
