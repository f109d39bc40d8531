// One field of the form: label, input, unit, help, and its own error.
import { h, say, set } from "./dom.js";
import { T } from "./texts.js";

const SECRET = /key|token|secret|passw/i;

/** Which schemas a value may have, also where there are several. */
function kinds(schema) {
	return (schema.anyOf ?? [schema]).map((each) => each.type ?? (each.enum ? "enum" : "string"));
}

export class Field {
	constructor(name, schema, { roots = null, onChange }) {
		this.name = name;
		this.schema = schema;
		this.kinds = kinds(schema);
		this.secret = SECRET.test(name);
		this.input = this.#input();
		this.input.id = `field-${name}`;
		this.input.name = name;
		set(this.input, "aria-describedby", `unit-${name} help-${name} error-${name}`);
		this.error = h("p", { class: "error", id: `error-${name}`, hidden: true });
		const unit = schema["x-unit"] ? h("span", { class: "unit", id: `unit-${name}` }, schema["x-unit"]) : null;
		const label = h("label", { for: this.input.id }, T.fieldName(name));
		const below = roots ? h("span", { class: "roots" }, T.form.roots(roots)) : null;
		const help = h(
			"p",
			{ class: "help", id: `help-${name}` },
			schema.description ?? "",
			below ? [" ", below] : null,
		);
		const box = this.kinds.includes("boolean") && !this.kinds.includes("string");
		const line = box
			? h("div", { class: "line tick" }, this.input, label)
			: h("div", { class: "line" }, this.input, unit);
		this.element = h(
			"div",
			{ class: `field${box ? " box" : ""}`, "data-field": name },
			box ? null : label,
			line,
			this.error,
			help,
		);
		this.input.addEventListener(
			this.input.type === "checkbox" || this.input.tagName === "SELECT" ? "change" : "input",
			() => onChange(this),
		);
	}

	#input() {
		const plain = { autocomplete: "off", spellcheck: "false", autocapitalize: "off" };
		if (this.kinds.includes("enum")) {
			return h(
				"select",
				{},
				this.schema.enum.map((value) => h("option", { value }, value)),
			);
		}
		if (this.kinds.includes("boolean") && !this.kinds.includes("string"))
			return h("input", { type: "checkbox" });
		if (this.secret) return h("input", { type: "password", ...plain, autocomplete: "new-password" });
		const numeric = this.#numeric();
		return h("input", {
			type: "text",
			...plain,
			inputmode: numeric ? (this.kinds.includes("integer") ? "numeric" : "decimal") : null,
			class: numeric ? "number" : null,
		});
	}

	#numeric() {
		return (
			(this.kinds.includes("integer") || this.kinds.includes("number")) && !this.kinds.includes("string")
		);
	}

	/** The value as the server takes it; text that is none of what it takes is sent as it is, and refused by name. */
	get value() {
		if (this.input.type === "checkbox") return this.input.checked;
		const text = this.input.value;
		if (this.kinds.includes("null") && text.trim() === "") return null;
		if (this.#numeric()) return asNumber(text);
		if (this.kinds.includes("boolean")) return { "": false, false: false, true: true }[text.trim()] ?? text;
		return text;
	}

	set value(value) {
		if (this.input.type === "checkbox") this.input.checked = value === true;
		else if (value === null || value === undefined) this.input.value = "";
		else if (this.kinds.includes("boolean") && value === false) this.input.value = "";
		else if (typeof value === "number" && value !== 0 && Math.abs(value) < 1e-3)
			this.input.value = value.toExponential();
		else this.input.value = typeof value === "object" ? JSON.stringify(value) : String(value);
	}

	/** Can it be put into this field? What is wrong with it in other ways, the server says. */
	holds(value) {
		if (this.input.type === "checkbox") return typeof value === "boolean";
		if (this.kinds.includes("enum")) return this.schema.enum.includes(value);
		return true;
	}

	/** The message beside the field; null for none. */
	set wrong(message) {
		say(this.error, message ?? "");
		this.error.hidden = !message;
		set(this.input, "aria-invalid", message ? "true" : null);
		this.element.classList.toggle("wrong", Boolean(message));
	}

	get wrong() {
		return this.error.hidden ? null : this.error.textContent;
	}
}

function asNumber(text) {
	const trimmed = text.trim();
	return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(trimmed) && Number.isFinite(Number(trimmed))
		? Number(trimmed)
		: text;
}
