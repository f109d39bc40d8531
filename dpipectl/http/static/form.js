// The form of a new training: made of the served schema and defaults, checked by the server, remembered here.
import { attempt } from "./actions.js";
import { get, post, Refusal } from "./api.js";
import { choose, show, toast } from "./dialog.js";
import { button, download, h, say } from "./dom.js";
import { Fields, MODELS } from "./fields.js";
import { live } from "./live.js";
import { forget, recall, remember } from "./memory.js";
import { code } from "./run.js";
import { T } from "./texts.js";

const PAUSE = 500;
const AGAIN = 2000;
export class Form {
	name = T.views.form;
	#fields = null;
	#defaults = {};
	#all = false; // has everything been asked to be checked?
	#timer = 0;
	#check = 0;
	#told = "";
	#until = new AbortController();

	constructor(from = null) {
		this.title = h("h1", { tabindex: "-1" }, T.form.title);
		this.busy = h("p", { class: "warning", hidden: true });
		this.groups = h("div", { class: "groups" }, h("p", { class: "quiet" }, T.form.loading));
		this.found = h("div", { class: "found", role: "alert" });
		this.file = h("input", {
			type: "file",
			accept: ".json,.toml,application/json",
			class: "aside",
			tabindex: "-1",
			"aria-label": T.form.load,
		});
		this.file.addEventListener("change", () => void this.#load());
		this.files = this.#files();
		this.bottom = h("div", { class: "bottom", hidden: true }, this.found, this.#buttons());
		this.element = h(
			"form",
			{ class: "training", novalidate: true },
			h(
				"div",
				{ class: "panel" },
				h("div", { class: "head" }, this.title, this.files),
				h("p", { class: "quiet" }, T.form.intro),
				this.busy,
			),
			this.groups,
			this.bottom,
		);
		this.element.addEventListener("submit", (event) => event.preventDefault());
		const listen = (name) =>
			live.addEventListener(name, () => this.#showBusy(), { signal: this.#until.signal });
		listen("state");
		this.#showBusy();
		void this.#open(from);
	}

	close() {
		this.#until.abort();
		clearTimeout(this.#timer);
	}

	#buttons() {
		this.startButton = button(T.form.start, () => this.#start(), { class: "primary" });
		return h(
			"div",
			{ class: "actions" },
			this.startButton,
			button(T.form.check, () => this.#checkAll()),
			button(T.form.preview, () => this.#preview()),
		);
	}

	#files() {
		return h(
			"div",
			{ class: "actions", hidden: true },
			this.file,
			button(T.form.load, () => this.file.click()),
			button(T.form.saveJson, () =>
				download(
					T.form.file("json"),
					`${JSON.stringify(this.#fields.shareable(), null, 2)}\n`,
					"application/json",
				),
			),
			button(T.form.saveToml, () => this.#saveToml()),
			button(T.form.reset, () => this.#reset()),
		);
	}

	#showBusy() {
		const active = live.state !== null && live.state.state !== "idle";
		this.busy.hidden = !active;
		say(this.busy, active ? T.form.busy : "");
	}

	// --- the fields

	async #open(from) {
		const gone = this.#until.signal;
		try {
			const [schema, defaults] = await Promise.all([
				get("train/schema", {}, gone),
				get("train/defaults", {}, gone),
			]);
			this.#defaults = defaults.form;
			this.#fields = new Fields(schema.properties, defaults.roots, () => this.#changed());
			this.groups.replaceChildren(...this.#fields.elements);
		} catch (error) {
			if (error.name === "AbortError") return;
			if (!(error instanceof Refusal)) throw error;
			this.groups.replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
			this.#timer = setTimeout(() => void this.#open(from), AGAIN);
			return;
		}
		this.bottom.hidden = false;
		this.files.hidden = false;
		this.#fill({ ...this.#defaults, ...recall("form", {}) });
		if (!from) return;
		await this.#fillFrom(from);
		// A reload is to bring back what was edited since, not the run's settings again.
		if (!gone.aborted) history.replaceState(null, "", "#/new");
	}

	async #fillFrom(run) {
		if (
			Object.keys(recall("form", {})).length &&
			(await choose(T.form.replaceTitle, h("p", {}, T.form.replaceText(run)), [
				["go", T.form.replace, "primary"],
			])) === null
		)
			return;
		if (this.#until.signal.aborted) return;
		const wrong = await attempt(async () => {
			const detail = await get(`runs/${run}`);
			if (this.#until.signal.aborted) return;
			if (!detail.form) throw new Refusal(409, T.form.noForm(run));
			this.#fill({ ...this.#defaults, ...detail.form, resume_from_checkpoint: false, wandb_api_key: null });
			this.#remember();
			toast(T.form.filled(run));
		});
		if (wrong) toast(wrong, "error");
	}

	#fill(values) {
		this.#fields.fill(values);
		this.#all = false;
		this.found.replaceChildren();
		this.#told = "";
	}

	#changed() {
		this.#remember();
		this.#fields.relevance();
		clearTimeout(this.#timer);
		this.#timer = setTimeout(() => void this.#checkQuietly(), PAUSE);
	}

	/** Only what differs from the defaults, so that a better default reaches who never touched it. */
	#remember() {
		const changed = Object.entries(this.#fields.shareable()).filter(
			([name, value]) => JSON.stringify(value) !== JSON.stringify(this.#defaults[name]),
		);
		remember("form", Object.fromEntries(changed));
	}

	// --- checking

	/** [field, message] of everything that is wrong. Throws Refusal if that can't be found out. */
	async #findings() {
		const { findings } = await post("train/check", this.#fields.values());
		return findings.map((each) => [each.field, each.message]);
	}

	/** While one types: only fields that were touched are told to be wrong. */
	async #checkQuietly() {
		const mine = (this.#check += 1);
		try {
			const findings = await this.#findings();
			if (mine !== this.#check) return;
			const elsewhere = this.#fields.place(findings, this.#all);
			if (this.#all) this.#summary(findings, elsewhere);
		} catch (error) {
			if (!(error instanceof Refusal)) throw error;
		}
	}

	/** Checks everything, and shows it. True if nothing was found. */
	async #checkAll(quietIfFine = false) {
		clearTimeout(this.#timer);
		this.#check += 1;
		this.#all = true;
		let findings;
		try {
			findings = await this.#findings();
		} catch (error) {
			if (!(error instanceof Refusal)) throw error;
			this.#say(error.message);
			return false;
		}
		const elsewhere = this.#fields.place(findings, true);
		this.#summary(findings, elsewhere);
		if (!findings.length && !quietIfFine) toast(T.form.fine);
		if (findings.length) this.#fields.wrong()[0]?.input.focus();
		return !findings.length;
	}

	#say(text) {
		this.#told = "";
		this.found.replaceChildren(h("p", { class: "error" }, text));
	}

	#summary(findings, elsewhere) {
		const key = JSON.stringify([findings.map(([name]) => name), elsewhere]);
		if (key === this.#told && findings.length) return;
		this.#told = key;
		if (!findings.length) {
			this.found.replaceChildren();
			return;
		}
		const links = this.#fields
			.wrong()
			.map((field) => button(T.fieldName(field.name), () => field.input.focus(), { class: "link" }));
		this.found.replaceChildren(
			h(
				"p",
				{ class: "error" },
				T.form.wrong(findings.length),
				" ",
				links.flatMap((link, at) => (at ? [", ", link] : [link])),
			),
			...elsewhere.map((text) => h("p", { class: "error" }, text)),
		);
	}

	// --- actions

	async #start() {
		if (!(await this.#checkAll(true)) && !(await this.#anyway())) return;
		const wrong = await attempt(() => this.#launch());
		if (wrong) this.#say(wrong);
	}

	async #launch() {
		try {
			await post("train/start", this.#fields.values());
		} catch (error) {
			if (error instanceof Refusal && error.fields.length) {
				const elsewhere = this.#fields.place(error.fields, true);
				this.#summary(error.fields, elsewhere);
				this.#fields.wrong()[0]?.input.focus();
				return;
			}
			throw error;
		}
		toast(T.form.started);
		location.hash = "#/";
	}

	/** Missing model files are found, yet they may be there by the time they are read. */
	async #anyway() {
		const wrong = this.#fields.wrong();
		if (!wrong.length || wrong.some((field) => !MODELS.includes(field.name))) return false;
		const list = h(
			"ul",
			{},
			wrong.map((field) => h("li", {}, `${T.fieldName(field.name)}: ${field.wrong}`)),
		);
		return (
			(await choose(
				T.form.anywayTitle,
				[h("p", {}, T.form.anywayText), list],
				[["go", T.form.anyway, "danger"]],
			)) !== null
		);
	}

	async #preview() {
		try {
			const files = await post("train/preview", this.#fields.values());
			await show(T.form.previewTitle, [
				code(files.training_path, files.training_toml),
				code(files.dataset_path, files.dataset_toml),
			]);
		} catch (error) {
			if (!(error instanceof Refusal)) throw error;
			if (error.fields.length) this.#summary(error.fields, this.#fields.place(error.fields, true));
			else this.#say(error.message);
		}
	}

	async #saveToml() {
		const wrong = await attempt(async () => {
			const { toml } = await post("train/form", { text: JSON.stringify(this.#fields.shareable()) });
			download(T.form.file("toml"), toml, "application/toml");
		});
		if (wrong) toast(wrong, "error");
	}

	async #load() {
		const [file] = this.file.files;
		this.file.value = "";
		if (!file) return;
		const wrong = await attempt(async () => {
			const { form, unknown, dropped } = await post("train/form", { text: await file.text() });
			const refused = Object.keys(form).filter((name) => !this.#fields.get(name)?.holds(form[name]));
			for (const name of refused) delete form[name];
			this.#fill({ ...this.#defaults, ...form });
			this.#remember();
			const notes = [T.form.loaded(file.name)];
			if (refused.length) notes.push(T.form.notTaken(refused.join(", ")));
			if (unknown.length) notes.push(T.form.unknown(unknown.join(", ")));
			if (dropped.length) notes.push(T.form.dropped(dropped.join(", ")));
			toast(notes.join(" "), unknown.length || refused.length ? "error" : "done");
		});
		if (wrong) toast(wrong, "error");
		else await this.#checkAll(true);
	}

	async #reset() {
		if (
			(await choose(T.form.resetTitle, h("p", {}, T.form.resetText), [["go", T.form.reset, "danger"]])) ===
			null
		)
			return;
		forget("form");
		this.#fill(this.#defaults);
	}
}
