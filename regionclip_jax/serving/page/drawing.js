// Boxes and labels, as the package draws them (reporting/drawing.py): a white halo, one colour a
// class, and labels that avoid each other.

const HALO = "#ffffff";

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
  // The best are drawn last, on top, and the active one above all.
  const ordered = objects.filter((object) => object !== active).reverse();
  if (active && objects.includes(active)) ordered.push(active);
  const placed = [];
  for (const pass of [drawBox, drawLabel]) {
    for (const object of ordered) {
      context.globalAlpha = active && object !== active ? 0.3 : 1;
      const [x, y, w, h] = object.box;
      const rectangle = inside([x * width, y * height, (x + w) * width, (y + h) * height], width, height);
      pass(context, object, rectangle, object === active ? line + 1 : line, letters, placed, width, height);
    }
  }
  context.globalAlpha = 1;
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

function drawBox(context, object, [x1, y1, x2, y2], line) {
  for (const [colour, thickness] of [[HALO, line + 2], [object.colour, line]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.strokeRect(x1 + line / 2, y1 + line / 2, Math.max(x2 - x1 - line, 1), Math.max(y2 - y1 - line, 1));
  }
}

function drawLabel(context, object, rectangle, line, letters, placed, width, height) {
  const pad = Math.max(3, Math.floor(letters / 4));
  const size = [Math.min(context.measureText(object.text).width + 2 * pad, width), letters + 2 * pad];
  const [x, y] = labelCorner(rectangle, size, line, placed, width, height);
  placed.push([x, y, x + size[0], y + size[1]]);
  context.fillStyle = object.colour;
  context.beginPath();
  context.roundRect(x, y, size[0], size[1], pad);
  context.fill();
  context.fillStyle = HALO;
  context.fillText(object.text, x + pad, y + size[1] / 2 + 1, size[0] - 2 * pad);
}

/** Return a label's corner above, in or below its box, with the least overlap. */
function labelCorner([x1, y1, x2, y2], [w, h], line, placed, width, height) {
  const clamped = (x) => Math.min(Math.max(x, 0), Math.max(width - w, 0));
  let corners = [y1 - h - 1, y1 + line + 1, y2 - line - 1 - h, y2 + 2].flatMap((y) => [
    [clamped(x1), y],
    [clamped(x2 - w), y],
  ]);
  corners = corners.filter(([, y]) => y >= 0 && y + h <= height);
  if (corners.length === 0) corners = [[clamped(x1), 0]];
  const covered = ([x, y]) =>
    placed.reduce((sum, [left, top, right, bottom]) => {
      const across = Math.min(x + w, right) - Math.max(x, left);
      const down = Math.min(y + h, bottom) - Math.max(y, top);
      return sum + Math.max(across, 0) * Math.max(down, 0);
    }, 0);
  return corners.reduce((best, corner) => (covered(corner) < covered(best) ? corner : best));
}
