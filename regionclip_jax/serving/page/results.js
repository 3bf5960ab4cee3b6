// The detections of an image: the list, the slider, the boxes, and the dataset.

import { drawBoxes, objectAt } from "./drawing.js";
import { $, say, sayLater } from "./messages.js";

const TIP_GAP = 12;

let settings = null; // of the server
let dataset = null; // COCO's format, all detections
let objects = []; // of the dataset, best first, with the row of the list
let active = null; // the emphasized object
let stop = null; // the object whose row Tab reaches; arrow keys go to the others

export function clearResults() {
  dataset = null;
  objects = [];
  activate(null);
  $("results").hidden = true;
  $("json").hidden = true;
  $("list").replaceChildren();
  redraw();
}

/**
 * Show the answer to a request.
 *
 * @param {object} answer of the server.
 * @param {object} model settings of the server.
 */
export function showResults(answer, model) {
  settings = model;
  dataset = answer.dataset;
  const { width, height } = dataset.images[0];
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
  sayLater(`${counted(visible.size)} shown.`);
}

/** Emphasize an object, or none, and show its score at a point of the frame or beside its box. */
export function activate(object, x = null, y = null) {
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
  link.download = `${dataset.images[0].file_name}.detections.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  say("Saved.");
}

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
new ResizeObserver(redraw).observe($("frame"));
