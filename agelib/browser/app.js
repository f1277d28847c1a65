// The page: photos in, ages out, all in this browser.

import * as ort from "./ort.wasm.min.mjs";
import { SIDE, crop, find } from "./faces.js";

ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
// several threads take headers that a plain file server does not send
ort.env.wasm.numThreads = 1;

// pixels of a face in the photo, below which its age means little
const SMALL = 32;
// rows of a photo, and faces, that are worked on together: phones have little memory
const ROWS = 512;
const FACES = 16;
const input = document.querySelector("#photos");
const drop = document.querySelector("#drop");
const status = document.querySelector("#status");
const results = document.querySelector("#results");
const photo = document.querySelector("#photo");
const person = document.querySelector("#person");

const loaded = load();
// one photo after another, whoever asks
let queue = loaded.then(
  () => say("Ready. Choose a photo."),
  (error) => say(`The networks could not be loaded: ${reason(error)}. Load the page again.`),
);
// how often photos were forgotten: what was asked for before is not shown any more
let forgotten = 0;

async function load() {
  const [age, ...detector] = await Promise.all(
    ["age", "pnet", "rnet", "onet"].map((name) =>
      ort.InferenceSession.create(new URL(`./${name}.onnx`, import.meta.url).href),
    ),
  );
  const networks = detector.map((session) => async (data, dims) => {
    const [name] = session.inputNames;
    return session.run({ [name]: new ort.Tensor("float32", data, dims) });
  });
  return { age, networks };
}

function say(text) {
  status.textContent = text;
}

// onnxruntime throws numbers, too
function reason(error) {
  return error?.message ?? String(error);
}

function take(files) {
  const asked = forgotten;
  for (const file of files) {
    queue = queue.then(() => asked === forgotten && show(file, asked));
  }
}

async function show(file, asked) {
  const section = photo.content.cloneNode(true).querySelector("section");
  section.querySelector("h2").textContent = file.name;
  const note = section.querySelector(".note");
  results.prepend(section);
  say(`Looking at ${file.name}`);
  // the networks leave the browser no time to show this, or to hear a button
  await new Promise((done) => setTimeout(done, 20));
  if (asked !== forgotten) return;
  let told;
  try {
    told = await fill(section, file);
    note.textContent = `${told}, from left to right`;
  } catch (error) {
    told = reason(error);
    note.textContent = `Nothing to show: ${told}.`;
    section.classList.add("failed");
  }
  if (asked === forgotten) say(`${file.name}: ${told}`);
}

async function fill(section, file) {
  const { age, networks } = await loaded;
  const bitmap = await decoded(file);
  try {
    const image = pixels(bitmap);
    const found = await find(image, networks);
    if (!found.length) throw new Error("no face found in it");
    const crops = found.map((face) => crop(image, face));
    const told = await ages(age, crops);
    const cards = crops.map((face, n) => card(n + 1, face, told[n], found[n]));
    section.querySelector(".people").append(...cards);
    section.querySelector(".picture").append(framed(bitmap, found, file.name));
    return found.length === 1 ? "1 face" : `${found.length} faces`;
  } finally {
    bitmap.close();
  }
}

async function decoded(file) {
  try {
    return await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
    });
  } catch {
    throw new Error("this browser can't read it as a picture");
  }
}

// Strip by strip, for some browsers have no canvas as large as a photo.
function pixels(bitmap) {
  const { width, height } = bitmap;
  const data = new Uint8ClampedArray(width * height * 3);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, Math.min(ROWS, height)];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0, j = 0; top < height; top += ROWS) {
    onWhite(context, bitmap, 0, -top, width, height);
    const rows = Math.min(ROWS, height - top);
    const { data: strip } = context.getImageData(0, 0, width, rows);
    for (let i = 0; i < strip.length; i += 4, j += 3) {
      data[j] = strip[i];
      data[j + 1] = strip[i + 1];
      data[j + 2] = strip[i + 2];
    }
  }
  return { width, height, data };
}

// As agelib: what is transparent is white.
function onWhite(context, bitmap, ...place) {
  context.fillStyle = "white";
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  context.drawImage(bitmap, ...place);
}

async function ages(session, crops) {
  const told = [];
  const size = SIDE * SIDE * 3;
  for (let start = 0; start < crops.length; start += FACES) {
    const some = crops.slice(start, start + FACES);
    const bytes = new Uint8Array(some.length * size);
    some.forEach(({ data }, n) => bytes.set(data, n * size));
    const dims = [some.length, SIDE, SIDE, 3];
    const answers = await session.run({ crops: new ort.Tensor("uint8", bytes, dims) });
    const { age, low, high, probabilities } = answers;
    some.forEach((_, n) => {
      const shares = probabilities.data.slice(101 * n, 101 * (n + 1));
      told.push({ age: age.data[n], low: low.data[n], high: high.data[n], shares });
    });
  }
  return told;
}

function card(number, face, { age, low, high, shares }, { side }) {
  const article = person.content.cloneNode(true).querySelector("article");
  article.dataset.age = age;
  article.dataset.low = low;
  article.dataset.high = high;
  const years = `${Math.round(low)} to ${Math.round(high)}`;
  article.querySelector("h3").textContent = `Face ${number}: ${Math.round(age)} years`;
  article.querySelector(".interval").textContent = `90% interval: ${years} years`;
  article.querySelector(".face").append(drawn(face, `Face ${number}`));
  article.append(curve(shares, low, high, years));
  if (side < SMALL) {
    const doubt = `Only ${Math.round(side)} pixels wide in the photo: its age means little.`;
    article.querySelector(".doubt").textContent = doubt;
  }
  return article;
}

function drawn({ width, height, data }, name) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let i = 0, j = 0; j < data.length; i += 4, j += 3) {
    pixels.data.set([data[j], data[j + 1], data[j + 2], 255], i);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// The photo with a numbered frame around each face.
function framed(bitmap, found, name) {
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, 1200 / Math.max(bitmap.width, bitmap.height));
  const { width, height } = bitmap;
  [canvas.width, canvas.height] = [width, height].map((n) => Math.max(1, n * scale));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${name}, with a frame around each face`);
  const context = canvas.getContext("2d");
  onWhite(context, bitmap, 0, 0, canvas.width, canvas.height);
  // large enough for a phone, which shows it smaller
  const unit = Math.max(1, canvas.width / 400);
  context.font = `bold ${14 * unit}px sans-serif`;
  found.forEach(({ x, y, side, turn }, n) => {
    const half = (side * scale) / 2;
    context.save();
    context.translate(x * scale, y * scale);
    context.rotate((-turn * Math.PI) / 180);
    context.lineWidth = 4 * unit;
    context.strokeStyle = "white";
    context.strokeRect(-half, -half, 2 * half, 2 * half);
    context.lineWidth = 2 * unit;
    context.strokeStyle = "#0165a0";
    context.strokeRect(-half, -half, 2 * half, 2 * half);
    context.fillStyle = "#0165a0";
    const wide = context.measureText(n + 1).width + 8 * unit;
    // above the face, if there is room
    const top = y * scale - half > 18 * unit ? -half - 18 * unit : -half;
    context.fillRect(-half, top, wide, 18 * unit);
    context.fillStyle = "white";
    context.fillText(n + 1, -half + 4 * unit, top + 14 * unit);
    context.restore();
  });
  return canvas;
}

// The distribution over ages as a curve, its interval shaded.
function curve(shares, low, high, years) {
  const svg = element("svg", { viewBox: "0 0 101 42", role: "img" });
  svg.setAttribute("aria-label", `How likely each age is; most between ${years}`);
  const top = Math.max(...shares);
  const points = [...shares].map((share, age) => `${age + 0.5},${36 - (34 * share) / top}`);
  svg.append(
    element("rect", { x: low, width: high - low + 1, y: 0, height: 36, class: "held" }),
    element("polygon", { points: `0.5,36 ${points.join(" ")} 100.5,36`, class: "share" }),
  );
  for (const age of [0, 20, 40, 60, 80, 100]) {
    const text = element("text", { x: Math.min(Math.max(age + 0.5, 2), 96), y: 41.5 });
    text.textContent = age;
    svg.append(text);
  }
  return svg;
}

function element(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

input.addEventListener("change", () => {
  take([...input.files]);
  input.value = "";
});
for (const event of ["dragenter", "dragover"]) {
  drop.addEventListener(event, () => drop.classList.add("over"));
}
for (const event of ["dragleave", "drop"]) {
  drop.addEventListener(event, () => drop.classList.remove("over"));
}
// a photo dropped beside its place would be opened by the browser, in place of the page
for (const event of ["dragenter", "dragover", "drop"]) {
  window.addEventListener(event, (dragged) => dragged.preventDefault());
}
window.addEventListener("drop", ({ dataTransfer }) => take([...dataTransfer.files]));
document.querySelector("#forget").addEventListener("click", () => {
  forgotten += 1;
  results.replaceChildren();
  say("Forgotten. Choose a photo.");
});
