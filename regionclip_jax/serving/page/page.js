// The page: the chosen image, the request, and events.

import { $, hideError, say, showError } from "./messages.js";
import { detect, readSettings, Refusal } from "./requests.js";
import { activate, clearResults, showResults } from "./results.js";

const HINT_SECONDS = 4;
const LEAST_SIDE = 640; // smaller images are enlarged by a whole number

let settings = null; // of the server
let file = null; // the chosen image
let running = null; // AbortController of the request
let clock = 0;

/** Read the settings of the server; return false, with an error shown, if it does not answer. */
async function start() {
  try {
    settings = await readSettings();
  } catch {
    showError("The server does not answer. Start it again, then try again.");
    return false;
  }
  $("about").textContent = `${settings.model} · ${settings.device.split(",")[0].toUpperCase()}`;
  $("about").title = `${settings.device}; regionclip_jax ${settings.version}`;
  $("formats").textContent = `JPEG, PNG, WebP and others, up to ${settings.most_bytes / 2 ** 20} MiB`;
  if (settings.own_names > 0) {
    $("hint").textContent =
      `Separate names with commas. Leave it empty for the ${settings.own_names} names of the model.`;
  }
  return true;
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
  if (!settings && !(await start())) return;
  if (!file) {
    showError("Choose an image first.");
    $("file").focus();
    return;
  }
  if (!$("words").value.trim() && !settings.own_names) {
    showError("Type what to look for, such as: cat, remote control");
    $("words").focus();
    return;
  }
  cancel();
  clearResults();
  const request = (running = new AbortController());
  setBusy(true);
  try {
    show(await detect(file, $("words").value, request.signal));
  } catch (error) {
    if (request.signal.aborted) return;
    showError(
      error instanceof Refusal
        ? error.message
        : "The connection to the server broke. Check that it runs, then try again.",
    );
  } finally {
    if (running === request) {
      running = null;
      setBusy(false);
    }
  }
}

function show(answer) {
  const { width, height } = answer.dataset.images[0];
  if ($("image").hidden) sizeFrame(width, height);
  $("name").textContent = `${file.name}, ${width} × ${height}`;
  showResults(answer, settings);
}

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

start();
