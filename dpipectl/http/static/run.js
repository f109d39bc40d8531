// One run: how it stands, what can be done, its curve, its log, its settings.
import { resume, save, stop, tensorboardAddress } from "./actions.js";
import { get, Refusal } from "./api.js";
import { Chart } from "./chart.js";
import { toast } from "./dialog.js";
import { button, copy, h, say, set } from "./dom.js";
import { moment } from "./format.js";
import { live } from "./live.js";
import { Log } from "./log.js";
import { Status } from "./status.js";
import { T } from "./texts.js";

const TICK = 1000;
const AGAIN = 2000;

export class Run {
	#record = null;
	#step = null;
	#until = new AbortController();
	#tick;
	#retry = 0;

	constructor(run) {
		this.run = run;
		this.name = T.views.run(run);
		this.status = new Status(run, () => this.#toFailure());
		this.bar = h("div", { class: "actions" });
		this.config = this.#configPanel();
		this.left = h("div", { class: "left" }, this.status.element, this.bar, this.config);
		this.right = h("div", { class: "right" });
		this.element = h("div", { class: "run" }, this.left, this.right);
		this.#buttons();
		const listen = (name, take) =>
			live.addEventListener(name, (event) => take(event.detail), { signal: this.#until.signal });
		listen("progress", () => this.#shown());
		listen("link", () => this.#shown());
		listen("state", () => this.#stateChanged());
		listen("end", (record) => record.id === this.run && void this.#read());
		this.#tick = setInterval(() => this.#shown(), TICK);
		void this.#read();
	}

	/** Where the focus goes when the view opens. */
	get title() {
		return this.status.title;
	}

	close() {
		this.#until.abort();
		clearInterval(this.#tick);
		clearTimeout(this.#retry);
		this.chart?.close();
		this.log?.close();
	}

	#stateChanged() {
		this.#shown();
		const over = !this.#active() && this.#record?.ended === false;
		if (live.reachable && !this.gone && (!this.#record || over)) void this.#read();
	}

	async #read() {
		clearTimeout(this.#retry);
		try {
			this.#record = await get(`runs/${this.run}`, {}, this.#until.signal);
		} catch (error) {
			if (error.name === "AbortError") return;
			if (!(error instanceof Refusal)) throw error;
			if ([400, 404, 409].includes(error.status)) this.#missing(error.message);
			else this.#retry = setTimeout(() => this.#read(), AGAIN);
			return;
		}
		if (!this.chart) {
			this.chart = new Chart(this.run, this.#record.summary.resumed_from);
			this.log = new Log(this.run);
			this.left.insertBefore(this.chart.element, this.config);
			this.right.append(this.log.element);
		}
		this.log.know(this.#record);
		if (this.#record.ended) this.chart.refresh();
		this.#shown();
	}

	#missing(text) {
		this.gone = true;
		this.element.replaceChildren(
			h(
				"section",
				{ class: "panel" },
				this.status.title,
				h("p", { class: "error", role: "alert" }, text),
				h("a", { href: "#/runs" }, T.run.toRuns),
			),
		);
	}

	#active() {
		return live.progress?.id === this.run;
	}

	#shown() {
		const focused = document.activeElement;
		this.status.show(this.#record);
		const step = this.#active() ? live.progress.step : null;
		if (step !== this.#step) {
			this.#step = step;
			this.chart?.refresh();
		}
		const active = this.#active();
		const stopping = live.state?.state === "stopping";
		this.stopButton.hidden = !active;
		say(this.stopButton, stopping ? T.stop.harder : T.stop.button);
		this.saveButton.hidden = !active || stopping;
		this.resumeButton.hidden =
			active || !this.#record?.ended || !this.#record.checkpoint || live.state?.state !== "idle";
		this.againLink.hidden = !this.#record?.form;
		const board = tensorboardAddress(this.run);
		this.boardLink.hidden = !board;
		if (board) set(this.boardLink, "href", board);
		// The focus must not get lost with a button that is not there any more.
		if (focused?.hidden && this.bar.contains(focused)) this.title.focus();
		say(this.boardNote, board || !live.state ? "" : T.tensorboard(live.state.tensorboard));
	}

	#buttons() {
		this.stopButton = button(T.stop.button, () => this.#stop(), { class: "danger", hidden: true });
		this.saveButton = button(T.save.button, save, { hidden: true });
		this.resumeButton = button(
			T.resume.button,
			async () => {
				if (await resume(this.#record)) location.hash = "#/";
			},
			{ class: "primary", hidden: true },
		);
		this.againLink = h("a", { class: "button", href: `#/new/${this.run}`, hidden: true }, T.run.again);
		this.boardLink = h(
			"a",
			{ class: "button", target: "_blank", rel: "noopener", hidden: true },
			T.run.tensorboard,
		);
		this.boardNote = h("span", { class: "quiet" });
		this.bar.append(
			this.stopButton,
			this.saveButton,
			this.resumeButton,
			this.againLink,
			this.boardLink,
			this.boardNote,
		);
	}

	async #stop() {
		await stop();
		// The run may have ended while the dialog was open, and the button is gone.
		if (this.stopButton.hidden) this.title.focus();
	}

	#toFailure() {
		this.log?.element.scrollIntoView({ block: "nearest" });
		void this.log?.toFailure();
	}

	#configPanel() {
		const content = h("div", {});
		const panel = h("details", { class: "panel config" }, h("summary", {}, T.run.config), content);
		panel.addEventListener("toggle", () => panel.open && void this.#readConfig(content));
		return panel;
	}

	async #readConfig(place) {
		try {
			const [texts, detail] = await Promise.all([get(`runs/${this.run}/config`), get(`runs/${this.run}`)]);
			const facts = [
				[T.run.made, moment(detail.summary.created)],
				[T.run.source, detail.summary.config],
				[T.run.folder, detail.run_dir],
				[T.run.output, detail.train_dir ?? detail.output_dir],
				[T.run.command, detail.argv.join(" ")],
				[T.run.name, detail.form?.wandb_run_name],
			].filter(([, value]) => value);
			place.replaceChildren(
				h(
					"dl",
					{ class: "record" },
					facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
				),
				...[
					[T.run.training, texts.training_toml],
					[T.run.dataset, texts.dataset_toml],
				].map(([title, text]) => code(title, text)),
			);
		} catch (error) {
			if (!(error instanceof Refusal)) throw error;
			place.replaceChildren(h("p", { class: "error" }, error.message));
		}
	}
}

/** A text with a title and a button that copies it. */
export function code(title, text) {
	return h(
		"div",
		{ class: "code" },
		h(
			"div",
			{ class: "head" },
			h("h3", {}, title),
			button(T.run.copy, async () => toast((await copy(text)) ? T.run.copied : T.log.notCopied)),
		),
		h("pre", { tabindex: "0", role: "region", "aria-label": title }, text),
	);
}
