// The tab's title and icon: what goes on, also for who looks at another tab.
import { h, set } from "./dom.js";
import { loss } from "./format.js";
import { T } from "./texts.js";

const COLOURS = {
	idle: "#7a8594",
	starting: "#1f6fd6",
	running: "#1f6fd6",
	stopping: "#b7791f",
	completed: "#1a8f4a",
	stopped: "#7a8594",
	failed: "#d1342b",
	unknown: "#b7791f",
	lost: "#d1342b",
};

/** What the icon shows: the link, what is active, or how the last run ended. */
export function mood(live) {
	if (live.link === "lost" || !live.reachable) return "lost";
	if (!live.state) return "idle";
	if (live.state.state !== "idle") return live.state.state;
	return live.state.last_run?.outcome ?? "idle";
}

/** Share of the steps that are done, 0 to 1, or null. */
export function share(progress) {
	if (!progress?.total_steps || progress.step === null) return null;
	return Math.min(progress.step / progress.total_steps, 1);
}

export function showSign(live) {
	const now = mood(live);
	const { progress } = live;
	const done = share(progress);
	const title = document.title;
	let wanted = `${T.sign[now]} · ${T.name}`;
	if (now === "running" && progress) {
		const parts = [
			done === null
				? (T.phases[progress.phase] ?? progress.phase)
				: `${Math.floor(done * 100)} ${T.units.percent}`,
		];
		if (progress.loss !== null) parts.push(T.sign.loss(loss(progress.loss)));
		wanted = `${parts.join(" · ")} · ${T.name}`;
	}
	if (live.link === "login") wanted = `${T.login.title} · ${T.name}`;
	if (title !== wanted) document.title = wanted;
	icon(now, done === null ? null : Math.floor(done * 24) / 24);
}

let shown = "";

function icon(now, done) {
	const key = `${now} ${done}`;
	if (key === shown) return;
	shown = key;
	const round = 2 * Math.PI * 11;
	const ring =
		done === null || now !== "running"
			? ""
			: `<circle cx="16" cy="16" r="11" fill="none" stroke="#fff" stroke-width="5" stroke-dasharray="${done * round} ${round}" transform="rotate(-90 16 16)"/>`;
	const sign = {
		failed: "M11 11l10 10M21 11l-10 10",
		lost: "M16 8v10M16 22v2",
		completed: "M9 16l5 5 9-10",
		stopped: "M11 11h10v10h-10z",
		unknown: "M16 8v10M16 22v2",
	}[now];
	const mark = sign ? `<path d="${sign}" fill="none" stroke="#fff" stroke-width="3.5"/>` : "";
	const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="16" fill="${COLOURS[now]}"/>${ring}${mark}</svg>`;
	const link =
		document.querySelector("link[rel=icon]") ?? document.head.appendChild(h("link", { rel: "icon" }));
	set(link, "href", `data:image/svg+xml,${encodeURIComponent(svg)}`);
}
