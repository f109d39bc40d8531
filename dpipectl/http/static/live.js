// What goes on, as the server's live events tell it. One stream for the whole page; views listen to it.
//
// The id of the last event is the run and the cursor in its log. The browser sends it back when it connects again by
// itself; where it gives up (a proxy's error, a log-out) we connect again with the same id. So nothing is lost
// or told twice. What a view misses of the log before it listens, it reads by cursor.
import { address, gate, get, Refusal } from "./api.js";

const AGAIN = 1500;
const SILENCE = 40_000; // milliseconds; the server says something every 15 seconds
const WOKEN = 20_000;

class Live extends EventTarget {
	link = "connecting"; // connecting, open, lost, login
	state = null; // the last `state` event of a daemon that answered
	reachable = true; // does the daemon answer the server?
	run = null; // the record of the run that the stream is at
	progress = null; // of the active run
	progressAt = 0; // when it came, in performance.now()
	current = "";
	#source = null;
	#id = null;
	#timer = 0;
	#heard = 0;
	#watch = 0;

	start() {
		this.stop();
		// The log itself is read by cursor: a window of it, however fast it grows.
		const query = { log: "grown", ...(this.#id ? { last_event_id: this.#id } : { tail: 1 }) };
		const source = new EventSource(address("events", query));
		this.#source = source;
		source.onopen = () => this.#linked("open");
		source.onerror = () => this.#failed(source);
		const on = (name, take) =>
			source.addEventListener(name, (event) => {
				this.#heard = Date.now();
				this.#id = event.lastEventId || this.#id;
				take(event.data, event.lastEventId);
			});
		on("run", (data) => this.#run(JSON.parse(data)));
		on("grown", (data, id) => this.#grown(JSON.parse(data), id));
		on("current", (data) => this.#tell("current", (this.current = JSON.parse(data))));
		on("state", (data) => this.#state(JSON.parse(data)));
		on("progress", (data) => this.#progress(JSON.parse(data)));
		on("end", (data) => this.#end(JSON.parse(data)));
		on("alive", () => {});
		this.#heard = Date.now();
		this.#watch = setInterval(() => this.#listen(), 5000);
	}

	/** A connection may be dead without anybody having been told: a laptop that slept, a server that hangs. */
	#listen(silence = SILENCE) {
		if (this.#source === null || Date.now() - this.#heard < silence) return;
		this.#linked("lost");
		this.start();
	}

	/** After a sleep, or a time without a network, nobody wants to wait for that. */
	woken() {
		this.#listen(WOKEN);
	}

	/** Nothing more until somebody has logged in. */
	lock() {
		this.stop();
		this.#linked("login");
	}

	stop() {
		clearTimeout(this.#timer);
		clearInterval(this.#watch);
		this.#source?.close();
		this.#source = null;
	}

	/** Is that run the one whose lines come by? */
	isAt(run) {
		return this.run !== null && this.run.id === run;
	}

	#run(record) {
		this.run = record;
		this.current = "";
		this.#tell("run", record);
	}

	#grown({ lines }, id) {
		const [run, to] = id.split(":");
		this.current = "";
		this.#tell("grown", { run, to: Number(to), lines });
	}

	#state(state) {
		this.reachable = state.state !== "unreachable";
		if (this.reachable) {
			this.state = state;
			if (state.run === null) this.progress = null;
		}
		this.#tell("state", this.state);
	}

	#progress(progress) {
		this.progress = progress;
		this.progressAt = performance.now();
		this.#tell("progress", progress);
	}

	#end(record) {
		this.current = "";
		if (this.isAt(record.id)) this.run = record;
		if (this.progress?.id === record.id) this.progress = null;
		this.#tell("end", record);
	}

	#tell(name, detail) {
		this.dispatchEvent(new CustomEvent(name, { detail }));
	}

	#linked(link) {
		if (this.link === link) return;
		this.link = link;
		this.#tell("link", link);
	}

	#failed(source) {
		if (source !== this.#source) return;
		if (source.readyState === EventSource.CLOSED && this.link === "connecting") {
			// Perhaps it only wants a token.
			void this.#again();
			return;
		}
		this.#linked("lost");
		if (source.readyState !== EventSource.CLOSED) return;
		// The browser does not try again by itself after an answer that is no stream.
		clearTimeout(this.#timer);
		this.#timer = setTimeout(() => this.#again(), AGAIN);
	}

	async #again() {
		try {
			await get("status");
		} catch (error) {
			if (!(error instanceof Refusal)) throw error;
			if (error.status === 401) return;
			this.#linked("lost");
			this.#timer = setTimeout(() => this.#again(), AGAIN);
			return;
		}
		// Meanwhile the page may have been left, or somebody be asked for the token.
		if (this.#source !== null) this.start();
	}
}

export const live = new Live();
// A page that is kept for the back button must not keep one of the few connections that a browser opens.
addEventListener("pagehide", () => live.stop());
addEventListener("pageshow", (event) => event.persisted && live.link !== "login" && live.start());
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && live.woken());
addEventListener("online", () => live.woken());
gate.addEventListener("login", () => live.dispatchEvent(new Event("login")));
