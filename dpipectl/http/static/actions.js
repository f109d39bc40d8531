// What a person can do to a run: stop it, have a checkpoint saved, go on from it, see its curves.
import { get, post, Refusal } from "./api.js";
import { choose, toast } from "./dialog.js";
import { h, say } from "./dom.js";
import { count, duration } from "./format.js";
import { live } from "./live.js";
import { recall } from "./memory.js";
import { T } from "./texts.js";

const SAVE_WAIT = 30;
const DIFFERENCES = 200; // differences that are shown

/** What a request says that was refused; null for one that was done. Other errors are ours, and thrown. */
export async function attempt(action) {
	try {
		await action();
		return null;
	} catch (error) {
		if (error instanceof Refusal) return error.message;
		throw error;
	}
}

/** Steps and seconds since the last checkpoint, that a stop without saving would lose. */
function atRisk(progress) {
	if (progress.step === null) return { steps: 0, seconds: null };
	const saved = progress.checkpoint_step;
	const begun = (progress.first_step ?? 1) - 1;
	// A run that was resumed has the checkpoint it began from.
	const from = saved === null || saved === undefined ? begun : Math.max(saved, begun);
	const sinceBegin = saved === null || saved === undefined || saved <= begun;
	const age = sinceBegin ? progress.elapsed_seconds : progress.checkpoint_age_seconds;
	return { steps: Math.max(progress.step - from, 0), seconds: age ?? null };
}

/** Asks how, and stops. What would be lost is kept up to date while it asks. */
export async function stop() {
	if (!live.progress) return;
	const { id } = live.progress;
	const loss = h("p", {});
	const tell = () =>
		live.progress?.id === id && say(loss, `${checkpointOf(live.progress)} ${lossOf(live.progress)}`);
	tell();
	live.addEventListener("progress", tell);
	const begun = live.state?.state === "stopping";
	// Before its first step a trainer has nothing to save, and does not look whether it is asked to.
	const saves = !begun && live.progress.step !== null;
	const ways = [
		...(saves ? [["save", T.stop.save, "primary"]] : []),
		["term", T.stop.term, "danger"],
		["kill", T.stop.kill, "danger"],
	];
	await choose(
		T.stop.title,
		[loss, h("p", { class: "quiet" }, begun ? T.stop.under : saves ? T.stop.explain : T.stop.early)],
		ways,
		(mode) =>
			attempt(async () => {
				// Another run may be active by now, and a run that was just begun has got its pid meanwhile.
				if (live.progress?.id !== id) {
					toast(T.stop.ended);
					return;
				}
				const { pid } = live.progress;
				const answer = await post("train/stop", undefined, { mode, pid, wait: 0 });
				toast(answer.status === "stopped" ? T.stop.done : sentence(answer.detail));
			}),
	);
	live.removeEventListener("progress", tell);
}

/** The daemon's own words on what it has done. */
function sentence(text) {
	return `${text[0].toUpperCase()}${text.slice(1)}${text.endsWith(".") ? "" : "."}`;
}

function checkpointOf(progress) {
	return progress.checkpoint ? T.stop.checkpoint(progress.checkpoint) : T.stop.noCheckpoint;
}

function lossOf(progress) {
	const risk = atRisk(progress);
	return risk.steps
		? T.stop.loses(count(risk.steps), risk.steps === 1, duration(risk.seconds))
		: T.stop.losesNothing;
}

/** A checkpoint now. */
export async function save() {
	const wrong = await attempt(async () => {
		toast(T.save.asked);
		const saved = await post("train/save", undefined, { wait: SAVE_WAIT });
		toast(saved.checkpoint ? T.save.done(saved.checkpoint) : T.save.later);
	});
	if (wrong) toast(wrong, "error");
}

/** Asks what to go on with, shows what differs, and starts. True if it runs. */
export async function resume(detail) {
	const { id } = detail.summary;
	const gpus = h("input", {
		id: "resume-gpus",
		inputmode: "numeric",
		size: "4",
		"aria-describedby": "resume-gpus-help",
	});
	const key = h("input", { id: "resume-key", type: "password", autocomplete: "off" });
	const form = await formForResume(detail);
	const own = recall("form", null)?.num_gpus ?? null;
	const needsKey = detail.form?.enable_wandb === true || form?.enable_wandb === true;
	const completed = detail.summary.state === "completed";
	const differences = form ? await compared(id, form) : null;
	const same = h("input", {
		type: "radio",
		name: "with",
		value: "same",
		checked: !completed,
		disabled: completed,
	});
	const other = h("input", {
		type: "radio",
		name: "with",
		value: "form",
		checked: completed && form !== null,
		disabled: !form,
	});
	const content = [
		h("p", {}, T.resume.from(detail.checkpoint, id)),
		h(
			"fieldset",
			{},
			h("legend", {}, T.resume.settings),
			h("label", { class: "tick" }, same, completed ? T.resume.completed : T.resume.same),
			h("label", { class: "tick" }, other, form ? T.resume.form : T.resume.noForm),
			differences,
		),
		h(
			"p",
			{},
			h("label", { for: "resume-gpus" }, T.resume.gpus),
			" ",
			gpus,
			h("span", { class: "quiet", id: "resume-gpus-help" }, T.resume.gpusHelp(own)),
		),
		needsKey ? h("p", {}, h("label", { for: "resume-key" }, T.resume.key), " ", key) : null,
	].filter(Boolean);
	const number = () => (gpus.value.trim() === "" ? null : asNumber(gpus.value.trim()));
	const chosen = await choose(T.resume.title, content, [["go", T.resume.go, "primary"]], () =>
		attempt(async () => {
			const secret = key.value ? { wandb_api_key: key.value } : {};
			if (completed && !other.checked) throw new Refusal(409, T.resume.needsForm);
			if (other.checked)
				return post("train/start", {
					...form,
					...secret,
					...(number() === null ? {} : { num_gpus: number() }),
				});
			const begun = await post("train/resume", { run: id, num_gpus: number(), ...secret });
			// It runs; but perhaps not from the checkpoint that was named.
			for (const warning of begun.warnings) toast(sentence(warning), "error");
			return begun;
		}),
	);
	return chosen !== null;
}

/** A number, or the text as it is, which the server then refuses by name. */
function asNumber(text) {
	return Number.isFinite(Number(text)) ? Number(text) : text;
}

/**
 * The form as it stands in this browser, going on from that run's folder; null where nothing was filled in. Where it leaves
 * the GPUs to the daemon it gets the run's: on others the global batch would be another one.
 */
async function formForResume(detail) {
	const kept = recall("form", null);
	if (!kept || !detail.train_dir) return null;
	const cut = detail.train_dir.lastIndexOf("/");
	try {
		const { form } = await get("train/defaults");
		return {
			...form,
			...kept,
			num_gpus: kept.num_gpus ?? detail.num_gpus,
			output_dir: detail.train_dir.slice(0, cut),
			resume_from_checkpoint: detail.train_dir.slice(cut + 1),
		};
	} catch (error) {
		if (error instanceof Refusal) return null;
		throw error;
	}
}

async function compared(run, form) {
	try {
		const { differences } = await post(`runs/${run}/compare`, form);
		if (!differences.length) return h("p", { class: "quiet" }, T.resume.noDifference);
		return differencesTable(differences);
	} catch (error) {
		if (error instanceof Refusal) return h("p", { class: "quiet" }, T.resume.notComparable(error.message));
		throw error;
	}
}

function differencesTable(differences) {
	const rows = differences
		.slice(0, DIFFERENCES)
		.map((each) =>
			h(
				"tr",
				{},
				h("th", { scope: "row" }, each.key),
				h("td", {}, each.before ?? T.resume.absent),
				h("td", {}, each.after ?? T.resume.absent),
			),
		);
	const head = h(
		"tr",
		{},
		...[T.resume.setting, T.resume.before, T.resume.after].map((text) => h("th", { scope: "col" }, text)),
	);
	return h(
		"div",
		{ class: "scroll", tabindex: "0", role: "region", "aria-label": T.resume.differences },
		h(
			"table",
			{ class: "differences" },
			h("caption", {}, T.resume.differences),
			h("thead", {}, head),
			h("tbody", {}, rows),
		),
	);
}

/** Where TensorBoard shows that run, as seen from this browser; null while it is not ready. */
export function tensorboardAddress(run) {
	const board = live.state?.tensorboard;
	if (board?.state !== "ready" || !board.url) return null;
	const url = new URL(board.public_url || board.url);
	// It is on the server's machine, which has another name from here.
	if (!board.public_url) url.hostname = location.hostname;
	if (run) url.searchParams.set("runFilter", run);
	url.hash = "timeseries";
	return url.href;
}
