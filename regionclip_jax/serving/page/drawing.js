// Boxes and labels, as the package draws them (reporting/drawing.py): a white halo, one colour a
// class, and labels that avoid each other.

const HALO = "#ffffff";
const MOST_COVERED = 0.3; // share of a label

/**
 * Draw the boxes of an image on the canvas that covers it.
 *
 * @param {HTMLCanvasElement} canvas of the size of the shown image, in CSS pixels.
 * @param {{box: number[], colour: string, text: string}[]} objects best first; boxes are x, y,
 *   width and height as shares of the image.
 * @param {object | null} active the object to emphasize.
 */
export function drawBoxes(canvas, objects, active) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.clearRect(0, 0, width, height);
  const side = Math.min(width, height);
  const line = Math.max(2, Math.round(Math.min(side / 110, 2 + side / 300)));
  const letters = Math.max(12, Math.round(Math.min(side / 21, 10 + side / 60)));
  context.font = `600 ${letters}px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif`;
  context.textBaseline = "middle";
  const marks = objects.map((object) => {
    const [x, y, w, h] = object.box;
    const box = inside([x * width, y * height, (x + w) * width, (y + h) * height], width, height);
    return { object, box, line: object === active ? line + 1 : line, label: null };
  });
  placeLabels(context, marks, active, letters, width, height);
  // The best are drawn last, on top, and the active one above all.
  marks.reverse().sort((a, b) => (a.object === active) - (b.object === active));
  for (const draw of [drawBox, drawLabel]) {
    for (const mark of marks) {
      context.globalAlpha = active && mark.object !== active ? 0.3 : 1;
      draw(context, mark);
    }
  }
}

/** Return the smallest object at a point (shares of the image), or null. */
export function objectAt(objects, x, y) {
  const hit = objects.filter(({ box }) => x >= box[0] && y >= box[1] && x <= box[0] + box[2] && y <= box[1] + box[3]);
  return hit.reduce((best, one) => (best === null || area(one) < area(best) ? one : best), null);
}

function area({ box }) {
  return box[2] * box[3];
}

function inside([x1, y1, x2, y2], width, height) {
  const left = Math.min(Math.max(x1, 0), width - 1);
  const top = Math.min(Math.max(y1, 0), height - 1);
  return [left, top, Math.min(Math.max(x2, left + 1), width), Math.min(Math.max(y2, top + 1), height)];
}

function drawBox(context, { object, box: [x1, y1, x2, y2], line }) {
  for (const [colour, thickness] of [[HALO, line + 2], [object.colour, line]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.strokeRect(x1 + line / 2, y1 + line / 2, Math.max(x2 - x1 - line, 1), Math.max(y2 - y1 - line, 1));
  }
}

function drawLabel(context, { object, label }) {
  if (label === null) return;
  const [x, y, w, h, pad] = label;
  context.fillStyle = object.colour;
  context.beginPath();
  context.roundRect(x, y, w, h, pad);
  context.fill();
  context.fillStyle = HALO;
  context.fillText(object.text, x + pad, y + h / 2 + 1, w - 2 * pad);
}

/** Place the labels, the best first; one that others would mostly cover is left out. */
function placeLabels(context, marks, active, letters, width, height) {
  const pad = Math.max(3, Math.floor(letters / 4));
  const placed = [];
  for (const mark of marks) {
    const w = Math.min(context.measureText(mark.object.text).width + 2 * pad, width);
    const h = letters + 2 * pad;
    const corners = labelCorners(mark, w, h, width, height);
    const covered = corners.map((corner) => coveredArea(corner, w, h, placed));
    const least = Math.min(...covered);
    if (least > MOST_COVERED * w * h && mark.object !== active) continue;
    const [x, y] = corners[covered.indexOf(least)];
    placed.push([x, y, x + w, y + h]);
    mark.label = [x, y, w, h, pad];
  }
}

/** Return the corners that a label may have: above, in or below its box. */
function labelCorners({ box: [x1, y1, x2, y2], line }, w, h, width, height) {
  const clamped = (x) => Math.min(Math.max(x, 0), Math.max(width - w, 0));
  const tops = [y1 - h - 1, y1 + line + 1, y2 - line - 1 - h, y2 + 2];
  const corners = tops.flatMap((y) => [[clamped(x1), y], [clamped(x2 - w), y]]);
  const fitting = corners.filter(([, y]) => y >= 0 && y + h <= height);
  return fitting.length ? fitting : [[clamped(x1), 0]];
}

function coveredArea([x, y], w, h, placed) {
  return placed.reduce((sum, [left, top, right, bottom]) => {
    const across = Math.min(x + w, right) - Math.max(x, left);
    const down = Math.min(y + h, bottom) - Math.max(y, top);
    return sum + Math.max(across, 0) * Math.max(down, 0);
  }, 0);
}
