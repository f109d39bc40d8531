// Questions and messages. A dialog is the browser's own: it keeps the focus inside, and Escape closes it.
import { button, h, say } from "./dom.js";
import { T } from "./texts.js";

let serial = 0;

/**
 * Opens a dialog and gives what was chosen, null for none. `choices`: [value, label, class] of each button, the first
 * one has the focus; `act` is run with the choice before the dialog closes: a text that it gives is an error, shown in it.
 */
export function choose(title, content, choices, act = async () => null) {
  const id = `dialog-${(serial += 1)}`;
  const error = h("p", { class: "error", role: "alert", hidden: true });
  return new Promise((resolve) => {
    const buttons = choices.map(([value, label, kind]) =>
      button(label, async () => {
        error.hidden = true;
        const wrong = await act(value);
        if (wrong) {
          say(error, wrong);
          error.hidden = false;
          return;
        }
        finish(value);
      }, { class: kind ?? "" }));
    const dialog = h("dialog", { "aria-labelledby": id }, h("h2", { id }, title), h("div", { class: "content" }, content), error,
      h("div", { class: "choices" }, ...buttons, button(choices.length ? T.dialog.cancel : T.dialog.close, () => finish(null))));
    let given = null;
    const finish = (value) => {
      given = value;
      dialog.close();
    };
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(given);
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

/** A message at the edge of the page, read out, gone after a while. Errors stay until they are closed. */
export function toast(text, kind = "done") {
  let place = document.querySelector(".toasts");
  place ??= document.body.appendChild(h("div", { class: "toasts", role: "status" }));
  const made = h("div", { class: `toast ${kind}` }, h("span", {}, text), button("×", () => made.remove(), { "aria-label": T.dialog.dismiss, class: "plain" }));
  place.append(made);
  if (kind !== "error") setTimeout(() => made.remove(), 8000);
}
