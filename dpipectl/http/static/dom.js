// Elements, made by functions. Whatever comes from a log, a caption or a name is put in as text: there is no
// place in the page where a string becomes HTML, and its policy forbids it.

/** An element. Properties: `on` has listeners, `class` and all others are attributes (false, null: left out). */
export function h(tag, properties = {}, ...children) {
	return fill(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function s(tag, properties = {}, ...children) {
	return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function fill(element, properties, children) {
	for (const [name, value] of Object.entries(properties)) {
		if (name === "on") {
			for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
		} else {
			set(element, name, value);
		}
	}
	element.append(
		...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
	);
	return element;
}

/** An attribute; `false`, null and undefined remove it, `true` sets it empty. */
export function set(element, name, value) {
	if (value === false || value === null || value === undefined) element.removeAttribute(name);
	else element.setAttribute(name, value === true ? "" : String(value));
}

/** Changes the text only if it is another one, so that a selection and a screen reader are left in peace. */
export function say(element, text) {
	if (element.textContent !== text) element.textContent = text;
}

/** A button that runs `action`; while a promise of it is open, a second press does nothing. */
export function button(label, action, properties = {}) {
	const made = h("button", { type: "button", ...properties }, label);
	let busy = false;
	made.addEventListener("click", async () => {
		if (busy) return;
		busy = true;
		set(made, "aria-busy", "true");
		try {
			await action();
		} finally {
			busy = false;
			set(made, "aria-busy", null);
		}
	});
	return made;
}

/** Saves text as a file. */
export function download(name, text, type) {
	const url = URL.createObjectURL(new Blob([text], { type }));
	const link = h("a", { href: url, download: name });
	document.body.append(link);
	link.click();
	link.remove();
	setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** To the clipboard; true if it is there. Outside of https and localhost only the old way works. */
export async function copy(text) {
	if (navigator.clipboard) {
		try {
			await navigator.clipboard.writeText(text);
			return true;
		} catch (error) {
			if (!(error instanceof DOMException)) throw error;
		}
	}
	const area = h("textarea", { class: "aside", "aria-hidden": "true", tabindex: "-1" });
	area.value = text;
	const focused = document.activeElement;
	// Outside of an open dialog nothing can be selected.
	(document.querySelector("dialog[open]") ?? document.body).append(area);
	area.select();
	const done = document.activeElement === area && document.execCommand("copy");
	area.remove();
	if (focused instanceof HTMLElement) focused.focus();
	return done;
}
