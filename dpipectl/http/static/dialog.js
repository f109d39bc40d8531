// Questions and messages. A dialog is the browser's own: it keeps the focus inside, and Escape closes it.
import { button, h, say } from "./dom.js";
import { T } from "./texts.js";

const SHOWN = 8000;
let serial = 0;

/** Where messages appear. It is there from the beginning, or a screen reader would miss the first one. */
export const toasts = h("div", { class: "toasts", role: "status" });

/**
 * Opens a dialog and gives what was chosen, null for none. `choices`: [value, label, class] of each button, the first
 * one has the focus; `act` is run with the choice before the dialog closes: a text that it gives is an error, shown in it.
 * A dialog that is closed while `act` is under way leaves it going, and its outcome is told all the same.
 */
export function choose(title, content, choices, act = async () => null) {
	const id = `dialog-${(serial += 1)}`;
	const error = h("p", { class: "error", role: "alert", hidden: true });
	return new Promise((resolve) => {
		let acting = false;
		const buttons = choices.map(([value, label, kind]) =>
			button(label, () => chosen(value), { class: kind ?? "" }),
		);
		const cancel = button(choices.length ? T.dialog.cancel : T.dialog.close, () => dialog.close());
		const dialog = h(
			"dialog",
			{ "aria-labelledby": id },
			h("h2", { id }, title),
			h("div", { class: "content" }, content),
			error,
			h("div", { class: "choices" }, ...buttons, cancel),
		);

		const chosen = async (value) => {
			acting = true;
			error.hidden = true;
			for (const each of buttons) each.disabled = true;
			const wrong = await act(value).finally(() => (acting = false));
			for (const each of buttons) each.disabled = false;
			if (!wrong) {
				resolve(value);
				dialog.close();
			} else if (dialog.open) {
				say(error, wrong);
				error.hidden = false;
				// It was disabled while it had the focus.
				buttons[choices.findIndex(([each]) => each === value)].focus();
			} else {
				toast(wrong, "error");
				resolve(null);
			}
		};
		dialog.addEventListener("close", () => {
			document.body.append(toasts);
			dialog.remove();
			if (!acting) resolve(null);
		});
		document.body.append(dialog);
		dialog.showModal();
		buttons[0]?.focus();
	});
}

/** Shows something until it is closed. */
export function show(title, content) {
	return choose(title, content, []);
}

/** Closes whatever is open: another view is shown. */
export function closeAll() {
	for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
}

/** A message at the edge of the page, read out, gone after a while. Errors stay until they are closed. */
export function toast(text, kind = "done") {
	// Outside of an open dialog nothing can be seen, read out or pressed.
	const place = document.querySelector("dialog[open]") ?? document.body;
	if (toasts.parentElement !== place) place.append(toasts);
	const made = h(
		"div",
		{ class: `toast ${kind}`, role: kind === "error" ? "alert" : null },
		h("span", {}, text),
		button("×", () => made.remove(), { "aria-label": T.dialog.dismiss, class: "plain" }),
	);
	toasts.append(made);
	if (kind !== "error") setTimeout(() => made.remove(), SHOWN);
}
