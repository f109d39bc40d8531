// The log: a window of lines onto a file of any length, moved by cursors.
//
// Live events tell only that the log has grown; what follows the window's end is read by cursor. So no line is lost or shown
// twice, whatever was away meanwhile, and a log that grows faster than anybody reads costs no more than a slow one.
import { address, get, Refusal } from "./api.js";
import { button, copy, h, say } from "./dom.js";
import { count } from "./format.js";
import { Lines } from "./lines.js";
import { live } from "./live.js";
import { recall, remember } from "./memory.js";
import { Search } from "./search.js";
import { T } from "./texts.js";

const PAGE = 500;
const KEPT = 2500; // lines in the window
const MOST = 20_000; // while a selection has to be kept
const NEAR = 600; // pixels from an edge at which more is read
const AT_END = 30; // pixels
const FAR = 200_000; // bytes behind; further, it goes to the end at once
const PAUSE = 50; // milliseconds between two readings
const AGAIN = 1000; // and after one that was refused

export class Log {
	known = 0; // the log's lines end here, as far as it was told
	following = true;
	over = false;
	failure = null;
	#timer = 0;
	#reading = false;
	#missed = 0;
	#scrolled = 0;
	#opened = false;
	#jump = 0; // of several jumps the last one counts
	#jumping = 0; // pages of jumps that are on their way
	#until = new AbortController();
	#size;
	#now = ""; // the unfinished last line

	constructor(run) {
		this.run = run;
		this.lines = new Lines();
		this.current = h("div", { class: "line now", hidden: true });
		this.view = h(
			"div",
			{ class: "view", tabindex: "0", role: "region", "aria-label": T.log.region },
			this.lines.element,
			this.current,
		);
		this.below = button(
			"",
			async () => {
				await this.toEnd();
				this.view.focus({ preventScroll: true });
			},
			{ class: "below", hidden: true },
		);
		this.search = new Search(this);
		this.said = h("span", { class: "quiet", role: "status" });
		this.element = h(
			"section",
			{ class: "panel log", "aria-labelledby": "log-title" },
			this.#head(),
			h("div", { class: "frame" }, this.view, this.below),
		);
		this.view.addEventListener("scroll", () => this.#onScroll(), { passive: true });
		this.view.classList.toggle("wrap", recall("wrap", true));
		const listen = (name, take) =>
			live.addEventListener(name, (event) => take(event.detail), { signal: this.#until.signal });
		listen("grown", (told) => this.#told(told));
		listen("current", (text) => live.isAt(this.run) && this.#showCurrent(text));
		listen("end", (record) => record.id === this.run && this.#soon());
		// What somebody is about to copy must not be moved or taken away.
		const signal = this.#until.signal;
		document.addEventListener("selectionchange", () => this.following && this.selected() && this.#pause(), {
			signal,
		});
		this.#size = new ResizeObserver(() => this.following && this.#scrollDown());
		this.#size.observe(this.view);
		// Opened while the daemon was away. Over a slow link a page may take longer than the next event.
		listen("state", () => !this.#opened && !this.#jumping && live.reachable && void this.toEnd());
		void this.toEnd();
	}

	close() {
		this.#until.abort();
		this.#size.disconnect();
		clearTimeout(this.#timer);
		this.search.close();
	}

	#head() {
		const wrap = h("input", { type: "checkbox" });
		wrap.checked = recall("wrap", true);
		wrap.addEventListener("change", () => {
			remember("wrap", wrap.checked);
			this.view.classList.toggle("wrap", wrap.checked);
			if (this.following) this.#scrollDown();
		});
		this.failureButton = button(T.log.failure, () => this.toFailure(), { hidden: true });
		return h(
			"div",
			{ class: "head" },
			h("h2", { id: "log-title" }, T.log.title),
			this.search.element,
			h(
				"div",
				{ class: "tools" },
				this.failureButton,
				button(T.log.begin, () => this.toBegin()),
				button(T.log.end, () => this.toEnd()),
				button(T.log.copy, () => this.#copy()),
				h("a", { class: "button", href: address(`runs/${this.run}/log`).href, download: "" }, T.log.download),
				h("label", { class: "tick" }, wrap, T.log.wrap),
				this.said,
			),
		);
	}

	/** What is known of the run by now: whether it is over, and the line {line, cursor} that says why it failed. */
	know(record) {
		this.over = record.ended;
		this.failure = record.failure;
		this.failureButton.hidden = !record.failure;
		this.#showBelow();
	}

	// --- where the window is

	toEnd() {
		return this.#end((this.#jump += 1));
	}

	/** True, unless the end can't be read. */
	async #end(jump) {
		const told = this.known;
		const page = await this.#read({ limit: PAGE }, true);
		if (!page) return false;
		// Somebody wants to be elsewhere by now.
		if (jump !== this.#jump) return true;
		this.following = true;
		this.#replace(page);
		this.#knowEnd(page, told);
		this.#showCurrent(page.current);
		this.#scrollDown();
		this.#showBelow();
		// What was told while the page was on its way.
		if (this.lines.end < this.known) this.#soon();
		return true;
	}

	async toBegin() {
		const jump = (this.#jump += 1);
		const page = await this.#read({ after: 0, limit: PAGE }, true);
		if (!page || jump !== this.#jump) return;
		this.#replace(page);
		this.view.scrollTop = 0;
		this.#scrolled = 0;
		// A short log is all in view: nothing is to be paused.
		const whole = this.lines.end >= this.known && this.view.scrollHeight <= this.view.clientHeight;
		if (!whole) this.#pause();
	}

	async toFailure() {
		if (!this.failure) return;
		await this.toCursor(this.failure.cursor);
		this.view.focus({ preventScroll: true });
	}

	/** Puts the line that begins at that cursor into the middle of the view, marked. */
	async toCursor(cursor) {
		const jump = (this.#jump += 1);
		const before = cursor > 0 ? await this.#read({ before: cursor, limit: PAGE / 2 }, true) : { lines: [] };
		const after = before && (await this.#read({ after: cursor, limit: PAGE }, true));
		if (!before || !after || jump !== this.#jump) return;
		this.#replace(...(before.lines.length && !isAnew(after, cursor) ? [before] : []), after);
		const line = this.lines.mark(after.first);
		if (line) {
			this.view.scrollTop = line.offsetTop - this.view.clientHeight / 2;
			this.view.scrollLeft = 0;
			this.#scrolled = this.view.scrollTop;
		}
		this.#pause();
	}

	#replace(...pages) {
		this.#missed = 0;
		this.#opened = true;
		this.lines.replace(...pages.map(asPage));
		this.#changed();
	}

	#changed() {
		this.#scrolled = this.view.scrollTop;
		this.search.changed();
		this.#showCurrent(this.#now);
	}

	#pause() {
		this.following = false;
		this.#showBelow();
	}

	// --- what is new

	#told({ run, to, lines }) {
		if (run !== this.run) return;
		// Less than before, where the log was truncated.
		this.known = to;
		this.#showCurrent("");
		if (this.following) {
			this.#soon();
		} else {
			this.#missed += lines;
			this.#showBelow();
		}
	}

	/** What was `told` before the page was asked for may be of a log that was truncated since. */
	#knowEnd(page, told) {
		// After a page without lines comes an unfinished one at most.
		if (this.known === told) this.known = Math.min(told, page.lines.length ? page.end : page.next);
		this.known = Math.max(this.known, page.next);
	}

	#soon(pause = PAUSE) {
		// What was under way when the view was closed comes back here.
		if (this.#until.signal.aborted) return;
		this.#timer ||= setTimeout(() => {
			this.#timer = 0;
			void this.catchUp();
		}, pause);
	}

	/** Reads on from the window's end; if that is too far behind, it goes to the log's end instead. */
	async catchUp() {
		if (!this.following) return;
		if (this.#reading) {
			this.#soon();
			return;
		}
		if (this.known - this.lines.end > FAR) {
			if (!(await this.#end(this.#jump))) this.#soon(AGAIN);
			return;
		}
		this.#reading = true;
		try {
			const [from, told] = [this.lines.end, this.known];
			const page = await this.#read({ after: from, limit: PAGE });
			if (!page) {
				this.#soon(AGAIN);
				return;
			}
			// The window may have been moved elsewhere meanwhile.
			if (this.lines.end !== from) return;
			if (isAnew(page, from)) {
				// There may be more of the new log than a page.
				if (!(await this.#end(this.#jump))) this.#soon(AGAIN);
				return;
			}
			if (page.lines.length) this.#append(asPage(page));
			this.#knowEnd(page, told);
			this.#showCurrent(page.current);
		} finally {
			this.#reading = false;
		}
		if (this.lines.end < this.known) this.#soon();
	}

	#append(page) {
		this.lines.append(page);
		this.#trim("first");
		this.search.changed();
		this.#scrollDown();
		this.#showBelow();
	}

	/** It stands at the log's end only. */
	#showCurrent(text) {
		this.#now = text;
		say(this.current, text);
		this.current.hidden = !text || this.lines.end < this.known;
		if (text && this.following) this.#scrollDown();
	}

	// --- scrolling

	#scrollDown() {
		this.view.scrollTop = this.view.scrollHeight;
		this.#scrolled = this.view.scrollTop;
	}

	#onScroll() {
		const { scrollTop, scrollHeight, clientHeight } = this.view;
		const below = scrollHeight - scrollTop - clientHeight;
		const [up, down] = [scrollTop < this.#scrolled - 1, scrollTop > this.#scrolled + 1];
		this.#scrolled = scrollTop;
		if (up && below >= AT_END) {
			this.following = false;
		} else if (down && below < AT_END && !this.following && this.known - this.lines.end < FAR) {
			// Who scrolls down to the end wants to see what comes, also where some more has come meanwhile.
			this.following = true;
			this.#soon();
		}
		if (scrollTop < NEAR && this.lines.first > 0) void this.#more("before");
		else if (below < NEAR && this.lines.end < this.known && !this.following) void this.#more("after");
		this.#showBelow();
	}

	/** Another page at one side; what is in view stays where it is. */
	async #more(side) {
		if (this.#reading) return;
		this.#reading = true;
		try {
			const { first, end } = this.lines;
			const told = this.known;
			const page = await this.#read(
				side === "before" ? { before: first, limit: PAGE } : { after: end, limit: PAGE },
			);
			const moved = this.lines.first !== first || this.lines.end !== end;
			if (!page || moved) return;
			if (side === "before" ? page.next < first : isAnew(page, end)) {
				this.#replace(page);
				this.#knowEnd(page, told);
				this.#now = page.current;
			} else if (!page.lines.length) {
				if (side === "after") this.#knowEnd(page, told);
				return;
			} else if (side === "before") {
				const height = this.view.scrollHeight;
				this.lines.prepend(asPage(page));
				this.view.scrollTop += this.view.scrollHeight - height;
				this.#trim("last");
			} else {
				this.lines.append(asPage(page));
				this.#knowEnd(page, told);
				this.#now = page.current;
				this.#trim("first");
			}
			this.#changed();
		} finally {
			this.#reading = false;
		}
		this.#onScroll();
	}

	/** A selection is kept: while there is one, the window may grow. */
	#trim(side) {
		const height = this.view.scrollHeight;
		this.lines.trim(side, this.selected() ? MOST : KEPT);
		if (side === "first" && !this.following) this.view.scrollTop -= height - this.view.scrollHeight;
	}

	selected() {
		const selection = getSelection();
		return selection !== null && !selection.isCollapsed && this.view.contains(selection.anchorNode);
	}

	#showBelow() {
		this.below.hidden = this.following;
		if (this.following) this.#missed = 0;
		say(
			this.below,
			this.#missed ? T.log.newLines(count(this.#missed)) : this.over ? T.log.toEnd : T.log.paused,
		);
	}

	// --- the rest

	/** A page; null if it can't be had, which is said where somebody `asked` for it. */
	async #read(query, asked = false) {
		this.#jumping += asked;
		try {
			const page = await get(`runs/${this.run}/lines`, query, this.#until.signal);
			if (asked) say(this.said, "");
			return page;
		} catch (error) {
			if (error.name === "AbortError") return null;
			if (!(error instanceof Refusal)) throw error;
			if (asked) say(this.said, error.message);
			return null;
		} finally {
			this.#jumping -= asked;
		}
	}

	async #copy() {
		const text = this.selected()
			? String(getSelection())
			: [...this.lines.text(), ...(this.current.hidden ? [] : [this.#now])].join("\n");
		const done = await copy(text);
		say(this.said, done ? T.log.copied(count(text.split("\n").length)) : T.log.notCopied);
	}
}

/** Is it of a log that was truncated since that cursor was given? Such a log is read from its beginning. */
function isAnew(page, after) {
	return page.first < after;
}

function asPage({ first, next, lines }) {
	return { first, end: next, lines };
}
