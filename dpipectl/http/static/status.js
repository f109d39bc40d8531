// How a run stands: while it goes on, from live events; when it is over, from its record.
import { h, say, set } from "./dom.js";
import { count, duration, gib, loss, moment, rate, size } from "./format.js";
import { live } from "./live.js";
import { share } from "./sign.js";
import { T } from "./texts.js";

export class Status {
	#facts = new Map();
	#said = "";

	constructor(run, onFailure) {
		this.run = run;
		this.pill = h("span", { class: "pill" });
		this.title = h("h1", { id: "run-title", tabindex: "-1" }, run);
		this.failure = h("div", { class: "failure", hidden: true });
		this.reason = h("p", {});
		this.line = h("code", {});
		this.failure.append(
			this.reason,
			this.line,
			h("button", { type: "button", on: { click: onFailure } }, T.status.showLine),
		);
		this.warning = h("p", { class: "warning", hidden: true });
		this.bar = h("progress", { max: "1", "aria-label": T.status.bar });
		this.barText = h("span", { class: "bar-text" });
		this.detail = h("p", { class: "quiet detail" });
		this.list = h("dl", { class: "facts" });
		this.heard = h("div", { class: "aside", role: "status" });
		this.element = h(
			"section",
			{ class: "panel status", "aria-labelledby": "run-title" },
			h("div", { class: "head" }, this.title, this.pill),
			this.failure,
			this.warning,
			h("div", { class: "bar" }, this.bar, this.barText),
			this.detail,
			this.list,
			this.heard,
		);
	}

	/** `record` is the run's, as the server keeps it (RunReply), or null while it is not read. */
	show(record) {
		const active = live.progress?.id === this.run ? live.progress : null;
		if (active) this.#active(active);
		else if (record) this.#past(record);
	}

	#active(progress) {
		const state = live.state?.state ?? "running";
		const since = (performance.now() - live.progressAt) / 1000;
		const fresh = live.link === "open" && live.reachable;
		const done = share(progress);
		this.#state(state, T.states[state]);
		this.#failed(progress.failing ?? null, null);
		this.#warn(progress.warning);
		this.#progress(
			done,
			!progress.total_steps
				? T.status.stepAlone(count(progress.step))
				: T.status.stepOf(count(progress.step ?? 0), count(progress.total_steps), done),
		);
		const phase = T.phases[progress.phase] ?? progress.phase;
		say(this.detail, progress.stopping ?? progress.detail ?? "");
		this.detail.hidden = false;
		const elapsed = progress.elapsed_seconds === null ? null : progress.elapsed_seconds + (fresh ? since : 0);
		this.#put("phase", phase);
		this.#put(
			"epoch",
			progress.epoch === null
				? T.unknown
				: progress.epochs
					? T.status.epochOf(count(progress.epoch), count(progress.epochs))
					: count(progress.epoch),
		);
		this.#put("loss", loss(progress.loss));
		this.#put("speed", rate(progress.samples_per_second));
		this.#put(
			"eta",
			progress.eta_seconds === null
				? progress.step
					? T.status.etaLater
					: T.unknown
				: duration(Math.max(progress.eta_seconds - (fresh ? since : 0), 0)),
		);
		this.#put("elapsed", duration(elapsed));
		this.#put("checkpoint", this.#checkpoint(progress, fresh ? since : 0));
		this.#gpus();
		this.#keep(["phase", "epoch", "loss", "speed", "eta", "elapsed", "checkpoint", "gpus"]);
		this.#hear(`${T.states[state]}: ${phase}`);
	}

	#checkpoint(progress, since) {
		if (!progress.checkpoint) return T.status.noCheckpoint;
		const age = progress.checkpoint_age_seconds;
		return age === null || age === undefined
			? progress.checkpoint
			: T.status.checkpoint(progress.checkpoint, duration(age + since));
	}

	#past(record) {
		const { summary } = record;
		this.#state(summary.state, T.states[summary.state] ?? summary.state);
		const bad = ["failed", "unknown", "damaged"].includes(summary.state);
		this.#failed(bad ? (summary.reason ?? T.status.noReason) : null, record.failure?.line ?? null);
		this.#warn(null);
		const total = record.form?.epochs;
		this.bar.parentElement.hidden = true;
		say(this.detail, bad ? "" : (summary.reason ?? ""));
		this.detail.hidden = bad || !summary.reason;
		const [begun, ended] = [summary.started_at, summary.ended_at];
		this.#put("steps", count(summary.step));
		this.#put(
			"epoch",
			summary.epoch === null
				? T.unknown
				: total
					? T.status.epochOf(count(summary.epoch), count(total))
					: count(summary.epoch),
		);
		this.#put("lastLoss", loss(summary.loss));
		this.#put("elapsed", begun && ended ? duration(ended - begun) : T.unknown);
		this.#put("started", moment(begun ?? summary.created));
		this.#put("ended", moment(ended));
		this.#put("checkpoint", record.checkpoint ?? T.status.noCheckpoint);
		this.#put("resumed", summary.resumed_from ?? "");
		this.#put(
			"exit",
			summary.signal
				? T.status.signal(summary.signal)
				: summary.exit_code === null
					? T.unknown
					: String(summary.exit_code),
		);
		this.#put("memory", record.peak_memory_bytes ? size(record.peak_memory_bytes) : T.unknown);
		this.#gpus();
		this.#keep([
			"steps",
			"epoch",
			"lastLoss",
			"elapsed",
			"started",
			"ended",
			"checkpoint",
			summary.resumed_from ? "resumed" : "",
			"exit",
			"memory",
			"gpus",
		]);
		this.#hear(`${T.states[summary.state] ?? summary.state}${summary.reason ? `: ${summary.reason}` : ""}`);
	}

	#gpus() {
		const gpus = live.state?.gpus ?? [];
		if (!gpus.length) this.#drop("gpus");
		else
			this.#put(
				"gpus",
				gpus
					.map((gpu) => T.status.gpu(gpu.index, gib(gpu.memory_used), gib(gpu.memory_total), gpu.utilization))
					.join("\n"),
			);
	}

	#state(kind, text) {
		this.pill.className = `pill ${live.link === "lost" || !live.reachable ? "lost" : kind}`;
		say(this.pill, text);
	}

	/** Why it failed, in words, and the line of the log that says so. */
	#failed(reason, line) {
		this.failure.hidden = reason === null;
		say(this.reason, reason ?? "");
		say(this.line, line ?? "");
		this.line.hidden = line === null;
		this.failure.lastElementChild.hidden = line === null;
	}

	#warn(text) {
		this.warning.hidden = !text;
		say(this.warning, text ?? "");
	}

	#progress(done, text) {
		this.bar.parentElement.hidden = false;
		if (done === null) set(this.bar, "value", null);
		else this.bar.value = done;
		say(this.barText, text);
	}

	#put(name, text) {
		let value = this.#facts.get(name);
		if (!value) {
			value = h("dd", { "data-fact": name });
			this.#facts.set(name, value);
			this.list.append(h("div", {}, h("dt", {}, T.facts[name]), value));
		}
		value.parentElement.hidden = false;
		say(value, text);
	}

	#drop(name) {
		const value = this.#facts.get(name);
		if (value) value.parentElement.hidden = true;
	}

	/** In this order; others are hidden. */
	#keep(names) {
		for (const name of this.#facts.keys()) if (!names.includes(name)) this.#drop(name);
		const key = names.join(" ");
		if (this.order === key) return;
		this.order = key;
		this.list.append(
			...names.filter((name) => this.#facts.has(name)).map((name) => this.#facts.get(name).parentElement),
		);
	}

	/** For a screen reader: changes of phase and outcome, not every step. */
	#hear(text) {
		if (text === this.#said) return;
		this.#said = text;
		say(this.heard, text);
	}
}
