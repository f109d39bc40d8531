// Search in the log: the server looks through all of it, the matches in the window are highlighted.
//
// Highlights are ranges (CSS Custom Highlights), not elements, so a selection survives them. A browser that does not know
// them shows the line that was jumped to only.
import { get, Refusal } from "./api.js";
import { button, h, say } from "./dom.js";
import { count } from "./format.js";
import { T } from "./texts.js";

const PAUSE = 250;
const MATCHES = 50_000;
const RANGES = 2000;
const RESHOWN = 150; // milliseconds between two highlightings

export class Search {
	#log;
	#matches = []; // cursors of lines
	#text = ""; // what was searched for
	#at = -1;
	#next = 0; // the log was searched up to here
	#running = null;
	#timer = 0;
	#shown = 0;
	#search = null; // the search that is under way

	constructor(log) {
		this.#log = log;
		this.field = h("input", {
			type: "search",
			id: "log-search",
			placeholder: T.search.placeholder,
			"aria-label": T.search.label,
			autocomplete: "off",
			spellcheck: "false",
		});
		this.said = h("output", { class: "quiet", for: "log-search" });
		this.element = h(
			"div",
			{ class: "search", role: "search" },
			this.field,
			button("↑", () => this.step(-1), { "aria-label": T.search.previous, title: T.search.previous }),
			button("↓", () => this.step(1), { "aria-label": T.search.next, title: T.search.next }),
			this.said,
		);
		this.field.addEventListener("input", () => {
			clearTimeout(this.#timer);
			this.#timer = setTimeout(() => this.#begin(), PAUSE);
		});
		this.field.addEventListener("keydown", (event) => {
			if (event.key === "Enter") void this.step(event.shiftKey ? -1 : 1);
		});
	}

	close() {
		clearTimeout(this.#timer);
		clearTimeout(this.#shown);
		this.#running?.abort();
		CSS.highlights?.delete("found");
	}

	/** Another text: from the beginning. The first match that is shown is the one nearest to what is in view. */
	async #begin() {
		this.#running?.abort();
		this.#search = null;
		this.#text = this.field.value;
		this.#matches = [];
		this.#at = -1;
		this.#next = 0;
		this.changed();
		if (!this.field.value) {
			say(this.said, "");
			return;
		}
		await this.#searched();
	}

	/** One search at a time: whoever needs its result waits for the one that runs. */
	#searched() {
		if (this.#search) return this.#search;
		const mine = this.#onward().finally(() => {
			// Another one may have been begun meanwhile.
			if (this.#search === mine) this.#search = null;
		});
		this.#search = mine;
		return mine;
	}

	/** Searches from where it has come to, to the end of what there is now. */
	async #onward() {
		const text = this.field.value.slice(0, 200);
		const running = new AbortController();
		this.#running = running;
		say(this.said, T.search.running);
		try {
			for (let end = false; !end && this.#matches.length < MATCHES;) {
				const found = await get(
					`runs/${this.#log.run}/search`,
					{ text, after: this.#next, limit: 1000 },
					running.signal,
				);
				this.#matches.push(...found.matches);
				this.#next = found.next;
				end = found.end;
				this.#tell(!end);
			}
			this.#tell(false);
		} catch (error) {
			if (error.name === "AbortError") return;
			if (!(error instanceof Refusal)) throw error;
			say(this.said, error.message);
		}
	}

	#tell(more) {
		if (!this.#matches.length) say(this.said, more ? T.search.running : T.search.none);
		else
			say(
				this.said,
				T.search.at(
					this.#at < 0 ? null : count(this.#at + 1),
					count(this.#matches.length),
					more || this.#matches.length >= MATCHES,
				),
			);
	}

	/** To the next match, or the one before; round at the ends. */
	async step(by) {
		clearTimeout(this.#timer);
		if (!this.field.value) return;
		if (this.#text !== this.field.value) await this.#begin();
		else if (this.#search) await this.#search;
		const grown = this.#log.known > this.#next;
		if (by > 0 && this.#at === this.#matches.length - 1 && grown) await this.#searched();
		const all = this.#matches.length;
		if (!all) return;
		if (this.#at < 0) this.#at = by > 0 ? this.#nearest() : all - 1;
		else this.#at = (this.#at + by + all) % all;
		this.#tell(false);
		await this.#log.toCursor(this.#matches[this.#at]);
	}

	#nearest() {
		const found = this.#matches.findIndex((cursor) => cursor >= this.#log.lines.first);
		return found < 0 ? this.#matches.length - 1 : found;
	}

	/** Other lines are in the window: highlights are made anew with the next frame. */
	changed() {
		if (!CSS.highlights) return;
		if (!this.field.value) CSS.highlights.delete("found");
		else this.#shown ||= setTimeout(() => this.#highlight(), RESHOWN);
	}

	#highlight() {
		this.#shown = 0;
		const text = this.field.value.toLowerCase();
		const ranges = [];
		for (const line of text ? this.#log.lines.all() : []) {
			const node = line.firstChild;
			if (!node) continue;
			const within = node.data.toLowerCase();
			for (
				let at = within.indexOf(text);
				at >= 0 && ranges.length < RANGES;
				at = within.indexOf(text, at + text.length)
			) {
				if (at + text.length > node.data.length) break;
				const range = new Range();
				range.setStart(node, at);
				range.setEnd(node, at + text.length);
				ranges.push(range);
			}
		}
		CSS.highlights.set("found", new Highlight(...ranges));
	}
}
