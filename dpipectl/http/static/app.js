// The page: its head, its views, and which of them is shown. A view's place is in the address, so a reload, a bookmark
// and the back button lead to it.
import { gate, post, Refusal } from "./api.js";
import { closeAll, toasts } from "./dialog.js";
import { button, h, say, set } from "./dom.js";
import { Form } from "./form.js";
import { live } from "./live.js";
import { recall, remember } from "./memory.js";
import { Run } from "./run.js";
import { Runs } from "./runs.js";
import { mood, showSign } from "./sign.js";
import { T } from "./texts.js";

const VIEWS = ["", "new", "runs"];
const THEMES = ["auto", "light", "dark"];

class App {
	#view = null;
	#key = null;

	constructor() {
		this.main = h("main", { id: "main", tabindex: "-1" });
		this.state = h("span", { class: "pill" });
		this.links = new Map(
			[
				["", T.views.current],
				["new", T.views.form],
				["runs", T.views.runs],
			].map(([to, label]) => [to, h("a", { href: `#/${to}` }, label)]),
		);
		this.banner = h("div", { class: "banner", role: "alert" });
		this.notices = h("div", { class: "notices" });
		const skip = h("a", { class: "skip", href: "#main" }, T.skip);
		skip.addEventListener("click", (event) => {
			event.preventDefault();
			this.main.focus();
		});
		document.body.replaceChildren(
			skip,
			h(
				"header",
				{},
				h("a", { class: "name", href: "#/" }, T.name),
				this.state,
				h("nav", { "aria-label": T.navigation }, ...this.links.values()),
				this.#theme(),
			),
			this.banner,
			this.notices,
			this.main,
			toasts,
		);
		addEventListener("hashchange", () => this.#route(true));
		gate.addEventListener("login", () => this.#login());
		live.addEventListener("link", () => this.#told());
		live.addEventListener("state", () => this.#told());
		live.addEventListener("progress", () => showSign(live));
		live.addEventListener("run", () => this.#follow());
		live.addEventListener("end", () => showSign(live));
		this.#told();
		this.#route(false);
		live.start();
	}

	#theme() {
		const apply = (theme) => {
			set(document.documentElement, "data-theme", theme === "auto" ? null : theme);
			say(this.themeButton, T.theme[theme]);
		};
		this.themeButton = button(
			"",
			() => {
				const next = THEMES[(THEMES.indexOf(recall("theme", "auto")) + 1) % THEMES.length];
				remember("theme", next);
				apply(next);
			},
			{ class: "plain theme", title: T.theme.title },
		);
		apply(THEMES.includes(recall("theme", "auto")) ? recall("theme", "auto") : "auto");
		return this.themeButton;
	}

	/** Link, daemon and last outcome, in the head. */
	#told() {
		const now = mood(live);
		this.state.className = `pill ${live.state === null && now === "idle" ? "waiting" : now}`;
		say(this.state, live.state === null && now === "idle" ? T.link.connecting : T.sign[now]);
		const locked = this.#key === "login";
		this.state.hidden = locked;
		const problem = locked
			? ""
			: live.link === "lost"
				? T.link.lost
				: live.reachable
					? ""
					: T.link.unreachable;
		say(this.banner, problem);
		const notices = live.state?.notices ?? [];
		if (notices.join("\n") !== this.said) {
			this.said = notices.join("\n");
			this.notices.replaceChildren(...notices.map((text) => h("p", { class: "warning" }, text)));
		}
		showSign(live);
		this.#follow();
		// For whoever measures how soon the page tells something.
		if (live.state && !performance.getEntriesByName("told").length) performance.mark("told");
	}

	/** On the first view: the active run, or else the last one. */
	#follow() {
		if (this.#place()[0] === "") this.#route(false);
	}

	#place() {
		const [, view = "", id = ""] = location.hash.split("/");
		// Whatever else stands there, somebody has typed it wrong.
		return [VIEWS.includes(view) ? view : "", /^\w[\w.-]{0,127}$/.test(id) ? id : ""];
	}

	#route(moved) {
		if (this.#key === "login") return;
		if (moved) closeAll();
		const [view, id] = this.#place();
		const newest = live.state?.run ?? live.run?.id ?? live.state?.last_run?.id ?? null;
		const run = view === "runs" ? id : view === "" ? newest : null;
		const key = run ? `run ${run}` : `${view} ${id} ${live.state === null}`;
		for (const [to, link] of this.links) set(link, "aria-current", to === view ? "page" : null);
		if (key === this.#key || (this.#key && view === "new" && this.#key.startsWith(`new ${id} `))) return;
		this.#key = key;
		const inside = this.main.contains(document.activeElement);
		this.#view?.close?.();
		this.#view = run ? new Run(run) : this.#other(view, id);
		this.main.replaceChildren(this.#view.element);
		if (moved || inside) this.#view.title?.focus({ preventScroll: true });
		if (moved) scrollTo(0, 0);
	}

	#other(view, id) {
		if (view === "new") return new Form(id || null);
		if (view === "runs") return new Runs();
		const title = h("h1", { tabindex: "-1" }, live.state ? T.welcome.title : T.link.connecting);
		const text = live.state
			? [h("p", {}, T.welcome.text), h("a", { class: "button primary", href: "#/new" }, T.welcome.start)]
			: [];
		return { title, element: h("section", { class: "panel" }, title, ...text) };
	}

	/** The server wants its token. */
	#login() {
		if (this.#key === "login") return;
		this.#key = "login";
		closeAll();
		this.#view?.close?.();
		live.lock();
		const field = h("input", {
			type: "password",
			id: "token",
			autocomplete: "current-password",
			required: true,
		});
		const error = h("p", { class: "error", role: "alert" });
		const form = h(
			"form",
			{ class: "panel login" },
			h("h1", {}, T.login.title),
			h("p", {}, T.login.text),
			h("label", { for: "token" }, T.login.token),
			field,
			error,
			h("button", { type: "submit", class: "primary" }, T.login.go),
		);
		form.addEventListener("submit", async (event) => {
			event.preventDefault();
			try {
				await post("login", { token: field.value });
			} catch (refused) {
				if (!(refused instanceof Refusal)) throw refused;
				say(error, refused.message);
				return;
			}
			this.#key = null;
			live.start();
			this.#told();
			this.#route(false);
			this.#view.title?.focus({ preventScroll: true });
		});
		this.#view = { element: form };
		this.main.replaceChildren(form);
		this.#told();
		field.focus();
	}
}

new App();
