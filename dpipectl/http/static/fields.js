// All fields of the form together: made of the schema, filled, read, told what is wrong with them.
import { h } from "./dom.js";
import { Field } from "./field.js";
import { T } from "./texts.js";

export const MODELS = ["transformer_path", "vae_path", "llm_path", "clip_path"];
const EMBEDDED = "dpiped";
/** Fields that mean something only while another one has a value. */
const ONLY_IF = {
	wandb_run_name: ["enable_wandb", true],
	wandb_tracker_name: ["enable_wandb", true],
	wandb_api_key: ["enable_wandb", true],
	min_ar: ["enable_ar_bucket", true],
	max_ar: ["enable_ar_bucket", true],
	num_ar_buckets: ["enable_ar_bucket", true],
	ar_buckets: ["enable_ar_bucket", true],
};

export class Fields {
	#fields = new Map();
	#touched = new Set();

	/** `changed` is called with a field that somebody has changed. */
	constructor(properties, roots, changed) {
		const onChange = (field) => {
			this.#touched.add(field.name);
			changed(field);
		};
		const groups = new Map();
		for (const [name, property] of Object.entries(properties)) {
			const field = new Field(name, property, { roots: roots[name], onChange });
			this.#fields.set(name, field);
			const group = property["x-group"];
			groups.set(group, [...(groups.get(group) ?? []), field.element]);
		}
		const known = T.form.groups.filter((group) => groups.has(group));
		const order = [...known, ...[...groups.keys()].filter((group) => !known.includes(group))];
		this.elements = order.map((group) =>
			h(
				"fieldset",
				{ class: "panel", "data-group": group },
				h("legend", {}, h("h2", {}, T.form.group(group))),
				h("div", { class: "fields" }, groups.get(group)),
			),
		);
	}

	get(name) {
		return this.#fields.get(name);
	}

	/** Nothing of it was touched yet, and nothing is known to be wrong. */
	fill(values) {
		for (const [name, field] of this.#fields) {
			if (name in values) field.value = values[name];
			field.wrong = null;
		}
		this.#touched.clear();
		this.relevance();
	}

	values() {
		return Object.fromEntries([...this.#fields].map(([name, field]) => [name, field.value]));
	}

	/** Without secrets. */
	shareable() {
		const open = [...this.#fields].filter(([, field]) => !field.secret);
		return Object.fromEntries(open.map(([name, field]) => [name, field.value]));
	}

	/** A field that has no meaning now is not shown, unless something is wrong with it. */
	relevance() {
		const value = (name) => this.#fields.get(name)?.value;
		for (const [name, field] of this.#fields) {
			const rule = MODELS.includes(name)
				? ["model_type", value("model_type") === EMBEDDED ? null : value("model_type")]
				: ONLY_IF[name];
			field.element.hidden = rule !== undefined && value(rule[0]) !== rule[1] && !field.wrong;
		}
	}

	/** Puts [field, message] to their fields; not `all`: to those only that were touched. Gives the messages of no field. */
	place(findings, all) {
		const wrong = new Map();
		for (const [name, text] of findings) {
			const message = withoutName(name, text);
			wrong.set(name, wrong.has(name) ? `${wrong.get(name)}; ${message}` : message);
		}
		for (const [name, field] of this.#fields) {
			field.wrong = all || this.#touched.has(name) ? (wrong.get(name) ?? null) : null;
		}
		this.relevance();
		return findings.filter(([name]) => !this.#fields.has(name)).map(([, message]) => message);
	}

	/** Those that are told to be wrong, in their order on the page. */
	wrong() {
		return [...this.#fields.values()].filter((field) => field.wrong);
	}
}

/** The message stands at its field, so it need not begin with the field's name. */
function withoutName(name, text) {
	for (const beginning of [`${name}: `, `${name} `])
		if (text.startsWith(beginning)) return text.slice(beginning.length);
	return text;
}
