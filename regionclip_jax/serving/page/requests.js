// Requests to the server.

/** Refusal of the server; the message states what it found and expected. */
export class Refusal extends Error {}

/** Return the settings of the server; throw if it does not answer with them. */
export async function readSettings() {
  const response = await fetch("settings");
  if (!response.ok) throw new Error(`status ${response.status}`);
  return response.json();
}

/**
 * Return the answer to an image and words.
 *
 * @param {File} file
 * @param {string} words
 * @param {AbortSignal} signal
 * @throws {Refusal} the server refused them.
 */
export async function detect(file, words, signal) {
  const form = new FormData();
  form.append("words", words);
  form.append("image", file, file.name);
  const response = await fetch("detect", { method: "POST", body: form, signal });
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return answer;
  const wait = response.headers.get("retry-after");
  const what = answer?.error ?? `The server answered with the status ${response.status}.`;
  throw new Refusal(sentence(wait ? `${what} (in ${wait} s)` : what));
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
