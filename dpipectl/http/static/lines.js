// The lines that are shown: blocks of them, each from one cursor to another. Only whole blocks are taken away, so the
// cursors at both ends of the window are always known.
import { h } from "./dom.js";

const BLOCK = 200; // lines to which live lines are gathered in one block
const BAD = /\b(error|exception|traceback|fatal|killed)\b/i;
const WARN = /\bwarn(ing)?s?\b/i;

export class Lines {
	#blocks = []; // {first, end, count, node}
	count = 0;

	constructor() {
		this.element = h("div", { class: "lines" });
	}

	/** Cursor of the first line. */
	get first() {
		return this.#blocks[0]?.first ?? 0;
	}

	/** Cursor after the last line. */
	get end() {
		return this.#blocks.at(-1)?.end ?? 0;
	}

	/** Only these pages {first, end, lines} from now on. */
	replace(...pages) {
		this.#blocks = pages.map(asBlock);
		this.count = pages.reduce((sum, page) => sum + page.lines.length, 0);
		this.element.replaceChildren(...this.#blocks.map((block) => block.node));
	}

	prepend(page) {
		const block = asBlock(page);
		this.#blocks.unshift(block);
		this.count += block.count;
		this.element.prepend(block.node);
	}

	/** Lines that follow the last one. */
	append(page) {
		const last = this.#blocks.at(-1);
		this.count += page.lines.length;
		if (last && last.count + page.lines.length <= BLOCK) {
			last.node.append(...page.lines.map(asLine));
			last.count += page.lines.length;
			last.end = page.end;
			return;
		}
		const block = asBlock(page);
		this.#blocks.push(block);
		this.element.append(block.node);
	}

	/** Takes blocks away at that side while at least `kept` lines remain. */
	trim(side, kept) {
		while (this.#blocks.length > 1) {
			const block = side === "first" ? this.#blocks[0] : this.#blocks.at(-1);
			if (this.count - block.count < kept) return;
			if (side === "first") this.#blocks.shift();
			else this.#blocks.pop();
			this.count -= block.count;
			block.node.remove();
		}
	}

	/** Marks the line at which that block begins, and gives it. */
	mark(cursor) {
		this.element.querySelector(".here")?.classList.remove("here");
		const line = this.#blocks.find((block) => block.first === cursor)?.node.firstElementChild ?? null;
		line?.classList.add("here");
		return line;
	}

	/** All lines' text. */
	text() {
		return this.all().map((line) => line.textContent);
	}

	all() {
		return [...this.element.querySelectorAll(".line")];
	}
}

function asBlock({ first, end, lines }) {
	return { first, end, count: lines.length, node: h("div", { class: "block" }, lines.map(asLine)) };
}

function asLine(text) {
	const mood = BAD.test(text) ? " bad" : WARN.test(text) ? " warn" : "";
	return h("div", { class: `line${mood}` }, text);
}
