// Requests. An answer that is an error becomes a Refusal, with the message of each field where there are fields.
import { T } from "./texts.js";

/**
 * Milliseconds after which nobody will answer any more: a connection may be dead without anybody having been told. The server
 * itself asks the daemon for 20 seconds, and for longer where that may take longer; by the last word of the path.
 */
const LIMITS = { lines: 30_000, series: 150_000, start: 120_000, resume: 120_000, check: 210_000 };
const LIMIT = 60_000; // of all others

/** `status` 0: nobody answered. `fields`: [name, message] of each field that was wrong. */
export class Refusal extends Error {
	constructor(status, message, fields = []) {
		super(message);
		this.status = status;
		this.fields = fields;
	}
}

/** Fires `login` when a token is asked for. */
export const gate = new EventTarget();

/** An address of this server, below whatever prefix the page has. */
export function address(path, query = {}) {
	const url = new URL(path, document.baseURI);
	url.hash = "";
	for (const [name, value] of Object.entries(query)) {
		if (value !== null && value !== undefined) url.searchParams.set(name, String(value));
	}
	return url;
}

export function get(path, query = {}, signal = undefined) {
	return ask("GET", path, query, undefined, signal);
}

export function post(path, body = undefined, query = {}) {
	return ask("POST", path, query, body, undefined);
}

async function ask(method, path, query, body, signal) {
	const limit = AbortSignal.timeout(LIMITS[path.split("/").at(-1)] ?? LIMIT);
	const sent = { method, signal: signal ? AbortSignal.any([signal, limit]) : limit, headers: {} };
	if (body !== undefined) {
		sent.body = JSON.stringify(body);
		sent.headers["content-type"] = "application/json";
	}
	let answer;
	let document_ = null;
	try {
		answer = await fetch(address(path, query), sent);
		const text = await answer.text();
		document_ = text ? JSON.parse(text) : null;
	} catch {
		// Whoever has asked wants no answer any more.
		signal?.throwIfAborted();
		throw new Refusal(0, T.errors.unreachable);
	}
	if (answer.ok) return document_;
	if (answer.status === 401 && path !== "login") gate.dispatchEvent(new Event("login"));
	throw refusal(answer.status, document_);
}

function refusal(status, content) {
	const detail = content?.detail;
	if (!Array.isArray(detail)) return new Refusal(status, detail || T.errors.status(status));
	const fields = detail.map((each) => [String(each.loc[1] ?? each.loc[0]), each.msg]);
	return new Refusal(status, detail.map((each) => each.msg).join("\n"), fields);
}
