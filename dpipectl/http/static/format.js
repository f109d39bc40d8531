// Numbers, times and sizes as a person reads them. What is not known is a dash.
import { T } from "./texts.js";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** Thousands separated. */
export function count(number) {
	return number === null || number === undefined ? T.unknown : whole.format(number);
}

/** A loss: four significant digits, small and large ones with an exponent. */
export function loss(number) {
	if (number === null || number === undefined) return T.unknown;
	if (!Number.isFinite(number)) return String(number);
	const size = Math.abs(number);
	if (size !== 0 && (size < 1e-3 || size >= 1e5)) return number.toExponential(3);
	return number.toPrecision(4);
}

/** Seconds as `45 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`. */
export function duration(seconds) {
	if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return T.unknown;
	const all = Math.max(Math.round(seconds), 0);
	const [d, h, m, sec] = [
		Math.floor(all / 86400),
		Math.floor(all / 3600) % 24,
		Math.floor(all / 60) % 60,
		all % 60,
	];
	const u = T.units;
	if (d) return `${d} ${u.d} ${h} ${u.h}`;
	if (h) return `${h} ${u.h} ${m} ${u.min}`;
	if (m) return `${m} ${u.min} ${sec} ${u.s}`;
	return `${sec} ${u.s}`;
}

/** Bytes in GiB, as GPU makers count. */
export function gib(bytes) {
	return (bytes / 2 ** 30).toFixed(1);
}

/** Bytes as MiB or GiB. */
export function size(bytes) {
	return bytes >= 2 ** 30 ? `${gib(bytes)} ${T.units.GiB}` : `${(bytes / 2 ** 20).toFixed(0)} ${T.units.MiB}`;
}

/** Samples per second. */
export function rate(number) {
	if (number === null || number === undefined) return T.unknown;
	return `${number >= 100 ? number.toFixed(0) : number.toPrecision(3)} ${T.status.perSecond}`;
}

/** A moment (Unix time) in the browser's zone: `2026-01-31 12:05:09`. */
export function moment(seconds) {
	if (!seconds) return T.unknown;
	const at = new Date(seconds * 1000);
	const two = (number) => String(number).padStart(2, "0");
	const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
	return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}
