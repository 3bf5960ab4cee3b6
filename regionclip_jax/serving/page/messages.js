// Messages of the page, for readers of screens as well.

export const $ = (id) => document.getElementById(id);
const ANNOUNCE_MS = 600;

let announcing = 0;

export function say(text) {
  clearTimeout(announcing); // an older text would replace this one
  $("status").textContent = text;
}

/** Say a text when no newer one came for a while, such as one for each move of a slider. */
export function sayLater(text) {
  clearTimeout(announcing);
  announcing = setTimeout(() => say(text), ANNOUNCE_MS);
}

export function showError(text) {
  $("error").textContent = text;
  $("error").hidden = false;
  say("");
}

export function hideError() {
  $("error").hidden = true;
}
