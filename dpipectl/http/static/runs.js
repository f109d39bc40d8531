// The history: every run with how it ended, how long it took and where its loss was.
import { get, Refusal } from "./api.js";
import { tensorboardAddress } from "./actions.js";
import { button, h, say } from "./dom.js";
import { count, duration, loss, moment } from "./format.js";
import { live } from "./live.js";
import { T } from "./texts.js";

const PAGE = 50;

export class Runs {
	name = T.views.runs;
	#limit = PAGE;
	#until = new AbortController();
	#shown = "";
	#state = "";

	constructor() {
		this.title = h("h1", { tabindex: "-1" }, T.runs.title);
		this.note = h("p", { class: "quiet", role: "status" });
		this.body = h("tbody", {});
		const columns = ["run", "outcome", "started", "duration", "steps", "loss", "config"].map((name) =>
			h("th", { scope: "col" }, T.runs[name]),
		);
		this.table = h(
			"table",
			{ class: "runs", hidden: true },
			h("caption", { class: "aside" }, T.runs.title),
			h("thead", {}, h("tr", {}, columns)),
			this.body,
		);
		this.more = button(
			T.runs.more,
			async () => {
				this.#limit += 200;
				await this.#read();
				if (this.more.hidden) this.title.focus();
			},
			{ hidden: true },
		);
		this.element = h("section", { class: "panel" }, this.title, this.note, this.table, this.more);
		const listen = (name, take) => live.addEventListener(name, take, { signal: this.#until.signal });
		listen("end", () => void this.#read());
		listen("run", () => void this.#read());
		listen("state", () => this.#changed());
		listen("progress", () => this.#progress());
		void this.#read();
	}

	close() {
		this.#until.abort();
	}

	/** GPUs change every other second, and are no reason to read the history again. */
	#changed() {
		const { state, run, last_run: last, tensorboard } = live.state ?? {};
		const key = JSON.stringify([live.reachable, state, run, last, tensorboard]);
		if (key === this.#state) return;
		this.#state = key;
		void this.#read();
	}

	async #read() {
		try {
			const { runs } = await get("runs", { limit: this.#limit }, this.#until.signal);
			this.#show(runs);
		} catch (error) {
			if (error.name === "AbortError") return;
			if (!(error instanceof Refusal)) throw error;
			this.#shown = "";
			say(this.note, error.message);
		}
	}

	#show(runs) {
		const key = JSON.stringify([runs, tensorboardAddress("x")]);
		if (key === this.#shown) return;
		this.#shown = key;
		say(this.note, runs.length ? T.runs.count(count(runs.length), runs.length === this.#limit) : T.runs.none);
		this.table.hidden = !runs.length;
		this.more.hidden = runs.length < this.#limit;
		// The focus stays where it is, although its row is made anew.
		const focused = document.activeElement?.closest("[data-run]")?.dataset.run;
		const at = focused
			? [...document.activeElement.closest("[data-run]").querySelectorAll("a")].indexOf(
					document.activeElement,
				)
			: -1;
		this.body.replaceChildren(...runs.map((run) => this.#row(run)));
		if (focused)
			this.body
				.querySelector(`[data-run="${CSS.escape(focused)}"]`)
				?.querySelectorAll("a")
				[at]?.focus();
		this.#progress();
	}

	#row(run) {
		const board = tensorboardAddress(run.id);
		const lasted = run.started_at && run.ended_at ? duration(run.ended_at - run.started_at) : T.unknown;
		const cell = (name, ...content) => h("td", { "data-label": T.runs[name], "data-cell": name }, ...content);
		return h(
			"tr",
			{ "data-run": run.id },
			h(
				"th",
				{ scope: "row", "data-label": T.runs.run },
				h("a", { href: `#/runs/${run.id}` }, run.id),
				run.resumed_from ? h("div", { class: "quiet" }, T.runs.resumed(run.resumed_from)) : null,
			),
			cell(
				"outcome",
				h("span", { class: `pill ${run.state}` }, T.states[run.state] ?? run.state),
				run.reason ? h("div", { class: "reason" }, run.reason) : null,
			),
			cell("started", moment(run.started_at ?? run.created)),
			cell("duration", lasted),
			cell("steps", count(run.step)),
			cell("loss", loss(run.loss)),
			cell(
				"config",
				h("span", { class: "path" }, run.config),
				board
					? h(
							"a",
							{
								class: "quiet",
								href: board,
								target: "_blank",
								rel: "noopener",
								"aria-label": T.runs.boardOf(run.id),
							},
							T.run.tensorboard,
						)
					: null,
			),
		);
	}

	/** The active run's numbers. */
	#progress() {
		const { progress } = live;
		const row = progress && this.body.querySelector(`[data-run="${CSS.escape(progress.id)}"]`);
		if (!row) return;
		say(row.querySelector("[data-cell=steps]"), count(progress.step));
		say(row.querySelector("[data-cell=loss]"), loss(progress.loss));
		say(row.querySelector("[data-cell=duration]"), duration(progress.elapsed_seconds));
	}
}
