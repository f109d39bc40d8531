// What this browser remembers. It may be forbidden to (private windows, full storage): then nothing is remembered,
// and the page works all the same.

const PREFIX = "dpiped.";

/** The value, or `otherwise`. */
export function recall(name, otherwise) {
	try {
		const text = localStorage.getItem(PREFIX + name);
		return text === null ? otherwise : JSON.parse(text);
	} catch (error) {
		if (error instanceof DOMException || error instanceof SyntaxError) return otherwise;
		throw error;
	}
}

export function remember(name, value) {
	try {
		localStorage.setItem(PREFIX + name, JSON.stringify(value));
	} catch (error) {
		if (!(error instanceof DOMException)) throw error;
	}
}

export function forget(name) {
	try {
		localStorage.removeItem(PREFIX + name);
	} catch (error) {
		if (!(error instanceof DOMException)) throw error;
	}
}
