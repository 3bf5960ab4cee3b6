import { drawBoxes, objectAt } from "./drawing.js";

const $ = (id) => document.getElementById(id);
const ANNOUNCE_MS = 600;
const HINT_SECONDS = 4;
const TIP_GAP = 12;
const LEAST_SIDE = 640; // smaller images are enlarged by a whole number

let settings = null;
let file = null; // the chosen image
let dataset = null; // COCO's format, all detections
let objects = []; // of the dataset, best first, with the row of the list
let active = null; // the emphasized object
let stop = null; // the object whose row Tab reaches; arrow keys go to the others
let running = null; // AbortController of the request
let clock = 0;
let announcing = 0;

async function start() {
  try {
    settings = await (await fetch("settings")).json();
  } catch {
    showError("The server does not answer. Start it again, then reload this page.");
    return;
  }
  $("about").textContent = `${settings.model} · ${settings.device.split(",")[0].toUpperCase()}`;
  $("about").title = `${settings.device}; regionclip_jax ${settings.version}`;
  $("formats").textContent = `JPEG, PNG, WebP and others, up to ${settings.most_bytes / 2 ** 20} MiB`;
  if (settings.own_names > 0) {
    $("hint").textContent =
      `Separate names with commas. Leave it empty for the ${settings.own_names} names of the model.`;
  }
}

// The image.

async function choose(chosen) {
  if (!chosen) return;
  cancel();
  clearResults();
  hideError();
  if (settings && chosen.size > settings.most_bytes) {
    showError(
      `${chosen.name} has ${(chosen.size / 2 ** 20).toFixed(1)} MiB, more than the ` +
        `${settings.most_bytes / 2 ** 20} MiB that the server accepts. Choose a smaller image.`,
    );
    return;
  }
  file = chosen;
  $("drop").hidden = true;
  $("figure").hidden = false;
  URL.revokeObjectURL($("image").src);
  const image = $("image");
  image.hidden = false;
  image.src = URL.createObjectURL(file);
  image.alt = `The chosen image, ${file.name}`;
  try {
    await image.decode();
    sizeFrame(image.naturalWidth, image.naturalHeight);
    $("name").textContent = `${file.name}, ${image.naturalWidth} × ${image.naturalHeight}`;
  } catch {
    if (file !== chosen) return; // another image replaced this one
    image.hidden = true;
    sizeFrame(4, 3);
    $("name").textContent = `${file.name}: this browser cannot show it, the server may read it`;
  }
  if (file !== chosen) return;
  say(`${file.name} is chosen.`);
  if ($("words").value.trim()) find();
  else $("words").focus({ preventScroll: true });
}

/** Give the frame the shape of an image, as large as the window allows. */
function sizeFrame(width, height) {
  const shown = width * Math.max(1, Math.ceil(LEAST_SIDE / Math.max(width, height)));
  $("frame").style.width = `min(${shown}px, 100%, calc(var(--tallest) * ${width / height}))`;
  $("frame").style.aspectRatio = `${width} / ${height}`;
}

// The request.

async function find() {
  hideError();
  if (!file) {
    showError("Choose an image first.");
    $("file").focus();
    return;
  }
  if (!$("words").value.trim() && !settings?.own_names) {
    showError("Type what to look for, such as: cat, remote control");
    $("words").focus();
    return;
  }
  cancel();
  clearResults();
  const form = new FormData();
  form.append("words", $("words").value);
  form.append("image", file, file.name);
  const request = (running = new AbortController());
  setBusy(true);
  try {
    const response = await fetch("detect", { method: "POST", body: form, signal: request.signal });
    const answer = await response.json().catch(() => null);
    if (!response.ok || answer === null) {
      const wait = response.headers.get("retry-after");
      const what = answer?.error ?? `The server answered with the status ${response.status}.`;
      throw new Refusal(wait ? `${what} (in ${wait} s)` : what);
    }
    showResults(answer);
  } catch (error) {
    if (request.signal.aborted) return;
    showError(
      error instanceof Refusal
        ? sentence(error.message)
        : "The connection to the server broke. Check that it runs, then try again.",
    );
  } finally {
    if (running === request) {
      running = null;
      setBusy(false);
    }
  }
}

class Refusal extends Error {}

function cancel() {
  if (!running) return;
  running.abort();
  running = null;
  setBusy(false);
  say("Cancelled.");
}

function setBusy(busy) {
  const hadFocus = document.activeElement === $("cancel");
  $("find").disabled = busy;
  $("cancel").hidden = !busy;
  if (hadFocus) $("words").focus();
  $("busy").hidden = !busy;
  $("stage").setAttribute("aria-busy", String(busy));
  clearInterval(clock);
  $("waiting").hidden = true;
  if (!busy) return;
  say("Looking for objects…");
  const began = performance.now();
  clock = setInterval(() => {
    const seconds = Math.round((performance.now() - began) / 1000);
    if (seconds < HINT_SECONDS) return;
    $("waiting").hidden = false;
    $("waiting").textContent =
      `${seconds} s. New words and the first image of a shape take longer; later ones are fast.`;
  }, 500);
}

// The results.

function clearResults() {
  dataset = null;
  objects = [];
  activate(null);
  $("results").hidden = true;
  $("json").hidden = true;
  $("list").replaceChildren();
  redraw();
}

function showResults(answer) {
  dataset = answer.dataset;
  const { width, height } = dataset.images[0];
  if ($("image").hidden) sizeFrame(width, height);
  $("name").textContent = `${file.name}, ${width} × ${height}`;
  const names = new Map(dataset.categories.map((category) => [category.id, category.name]));
  objects = dataset.annotations.map((annotation, number) => {
    const [x, y, w, h] = annotation.bbox;
    const object = {
      annotation,
      name: names.get(annotation.category_id),
      label: answer.labels[number],
      colour: answer.colours[annotation.category_id],
      box: [x / width, y / height, w / width, h / height],
    };
    object.text = `${object.name} ${object.label}`;
    object.row = listRow(object);
    return object;
  });
  $("list").replaceChildren(...objects.map((object) => object.row));
  const best = objects.length ? objects[0].annotation.score : 1;
  const slider = $("threshold");
  slider.min = String(Math.floor(settings.score_above * 100) / 100);
  slider.max = String(settings.probabilities ? 1 : Math.max(1, Math.ceil(best * 100) / 100));
  slider.value = String(settings.drawn_score);
  $("results").hidden = false;
  applyThreshold();
  const number = shown().length;
  const found = number ? `${counted(number)} found` : "No object found with this score";
  say(`${found}, in ${answer.seconds.toFixed(1)} s.`);
}

function listRow(object) {
  const row = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = object.colour;
  const word = document.createElement("span");
  word.className = "word";
  word.textContent = object.name;
  word.title = object.name;
  const score = document.createElement("span");
  score.className = "score";
  score.textContent = object.label;
  button.append(swatch, word, score);
  button.addEventListener("focus", () => {
    setStop(object);
    activate(object);
  });
  button.addEventListener("blur", () => activate(null));
  button.addEventListener("pointerenter", () => activate(object));
  button.addEventListener("pointerleave", () => activate(null));
  button.addEventListener("click", () => activate(object));
  button.addEventListener("keydown", (event) => {
    const visible = shown();
    const here = visible.indexOf(object);
    const places = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: visible.length - 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    visible[places[event.key]]?.row.firstChild.focus();
  });
  row.append(button);
  return row;
}

/** Make one row the one that Tab reaches, so that a long list is one step of Tab. */
function setStop(object) {
  stop = object;
  for (const one of objects) one.row.firstChild.tabIndex = one === object ? 0 : -1;
}

function threshold() {
  return Number($("threshold").value);
}

function shown() {
  return objects.filter((object) => object.annotation.score >= threshold());
}

function counted(number) {
  return number === 1 ? "1 object" : `${number} objects`;
}

function scoreText(score) {
  return settings.probabilities ? `${Math.round(score * 100)}%` : score.toFixed(2);
}

function applyThreshold() {
  const visible = new Set(shown());
  for (const object of objects) object.row.hidden = !visible.has(object);
  if (active && !visible.has(active)) activate(null);
  if (!visible.has(stop)) setStop(visible.values().next().value ?? null);
  const text = `${scoreText(threshold())}, ${visible.size} of ${objects.length}`;
  $("shown").textContent = text;
  $("threshold").setAttribute("aria-valuetext", text);
  const best = objects[0];
  $("none").hidden = visible.size > 0;
  $("lower").hidden = visible.size > 0 || !best;
  $("list").hidden = $("export").hidden = visible.size === 0;
  $("json").hidden = true;
  $("copy").textContent = "Copy COCO JSON";
  $("none").textContent = best
    ? "No object has this score. The best one may be a mistake of the model."
    : "No object found. Try other words or another image.";
  if (best) $("lower").textContent = `Lower to ${best.label}: ${best.name}`;
  redraw();
  clearTimeout(announcing);
  announcing = setTimeout(() => say(`${counted(visible.size)} shown.`), ANNOUNCE_MS);
}

function activate(object, x = null, y = null) {
  if (object !== active) {
    active = object;
    for (const one of objects) one.row.firstChild.classList.toggle("active", one === object);
    redraw();
  }
  const tip = $("tip");
  tip.hidden = object === null;
  if (object === null) return;
  const [left, top, width, height] = object.annotation.bbox;
  const score = object.annotation.score.toFixed(3);
  tip.textContent =
    `${object.name}\nscore ${score}\n` +
    `${Math.round(width)} × ${Math.round(height)} at ${Math.round(left)}, ${Math.round(top)}`;
  const frame = $("frame");
  // Beside the pointer, or beside the box.
  const right = (x ?? (object.box[0] + object.box[2]) * frame.clientWidth) + TIP_GAP;
  const below = y === null ? object.box[1] * frame.clientHeight : y + TIP_GAP;
  tip.style.left = `${Math.max(4, Math.min(right, frame.clientWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(below, frame.clientHeight - tip.offsetHeight - 4))}px`;
}

function redraw() {
  const visible = shown();
  if ($("figure").hidden) return;
  drawBoxes($("boxes"), visible, active);
  const some = visible.slice(0, 10).map((object) => object.text).join(", ");
  const more = visible.length > 10 ? ", and more" : "";
  $("boxes").setAttribute("aria-label", visible.length ? `Boxes: ${some}${more}` : "No boxes");
}

function pointed(event) {
  const area = $("boxes").getBoundingClientRect();
  const x = event.clientX - area.left;
  const y = event.clientY - area.top;
  const object = objectAt(shown(), x / area.width, y / area.height);
  if (object || active) activate(object, x, y);
  $("boxes").style.cursor = object ? "pointer" : "default";
}

// The dataset.

function exported() {
  const annotations = shown().map((object) => object.annotation);
  return JSON.stringify({ ...dataset, annotations }, null, 1);
}

async function copy() {
  const text = exported();
  const area = $("json");
  let copied = false;
  try {
    await navigator.clipboard.writeText(text);
    copied = true;
  } catch {
    // Pages of other machines without HTTPS have no clipboard.
    area.hidden = false;
    area.value = text;
    area.focus();
    area.select();
    copied = document.execCommand("copy");
  }
  $("copy").textContent = copied ? "Copied" : "Copy it below";
  say(copied ? `Copied ${counted(shown().length)}.` : "Copy the selected text.");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported()], { type: "application/json" }));
  link.download = `${file.name}.detections.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  say("Saved.");
}

// Messages.

function say(text) {
  clearTimeout(announcing); // an older text would replace this one
  $("status").textContent = text;
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = false;
  say("");
}

function hideError() {
  $("error").hidden = true;
}

// Events.

$("file").addEventListener("change", () => {
  choose($("file").files[0]);
  $("file").value = ""; // the same file may be chosen again
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  find();
});
$("words").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) find();
});
$("cancel").addEventListener("click", cancel);
$("threshold").addEventListener("input", applyThreshold);
$("lower").addEventListener("click", () => {
  const slider = $("threshold");
  slider.value = String(Math.floor(objects[0].annotation.score * 100) / 100);
  applyThreshold();
  slider.focus();
});
$("copy").addEventListener("click", copy);
$("save").addEventListener("click", save);
$("boxes").addEventListener("pointermove", pointed);
$("boxes").addEventListener("pointerdown", pointed);
$("boxes").addEventListener("pointerleave", (event) => {
  if (event.pointerType === "mouse") activate(null);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  cancel();
  activate(null);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("over").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) $("over").hidden = true;
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("over").hidden = true;
  choose(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));
new ResizeObserver(redraw).observe($("frame"));

start();
