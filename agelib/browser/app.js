// The page: photos in, ages out, all in this browser.

import * as ort from "./ort.wasm.min.mjs";
import { SIDE, crop, find, withoutAlpha } from "./faces.js";

ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
// several threads take headers that a plain file server does not send
ort.env.wasm.numThreads = 1;

const SMALL = 40;
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
  (error) => say(`The networks could not be loaded: ${error.message}. Load the page again.`),
);

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

function take(files) {
  for (const file of files) queue = queue.then(() => show(file));
}

async function show(file) {
  const section = photo.content.cloneNode(true).querySelector("section");
  section.querySelector("h2").textContent = file.name;
  const note = section.querySelector(".note");
  results.prepend(section);
  say(`Looking at ${file.name}`);
  try {
    const { age, networks } = await loaded;
    const { image, canvas } = await read(file);
    const found = await find(image, networks);
    if (!found.length) throw new Error("no face found in it");
    const crops = found.map((face) => crop(image, face));
    const told = await ages(age, crops);
    const people = section.querySelector(".people");
    const cards = crops.map((face, n) => card(n + 1, face, told[n], found[n]));
    people.append(...cards);
    section.querySelector(".picture").append(framed(canvas, found, file.name));
    const faces = found.length === 1 ? "1 face" : `${found.length} faces`;
    note.textContent = `${faces}, from left to right`;
    say(`${file.name}: ${faces}`);
  } catch (error) {
    note.textContent = `Nothing to show: ${error.message}.`;
    section.classList.add("failed");
    say(`${file.name}: ${error.message}`);
  }
}

async function read(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
    });
  } catch {
    throw new Error("this browser can't read it as a picture");
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  // as agelib: what is transparent is white
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  return { canvas, image: withoutAlpha(pixels) };
}

async function ages(session, crops) {
  const size = SIDE * SIDE * 3;
  const pixels = new Uint8Array(crops.length * size);
  crops.forEach(({ data }, n) => pixels.set(data, n * size));
  const dims = [crops.length, SIDE, SIDE, 3];
  const told = await session.run({ crops: new ort.Tensor("uint8", pixels, dims) });
  const { age, low, high, probabilities } = told;
  return crops.map((_, n) => ({
    age: age.data[n],
    low: low.data[n],
    high: high.data[n],
    shares: probabilities.data.slice(101 * n, 101 * (n + 1)),
  }));
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
  article.querySelector(".shares").append(curve(shares, low, high, years));
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
function framed(photo, found, name) {
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, 1200 / Math.max(photo.width, photo.height));
  [canvas.width, canvas.height] = [photo.width * scale, photo.height * scale];
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${name}, with a frame around each face`);
  const context = canvas.getContext("2d");
  context.drawImage(photo, 0, 0, canvas.width, canvas.height);
  found.forEach(({ x, y, side, turn }, n) => {
    const half = (side * scale) / 2;
    context.save();
    context.translate(x * scale, y * scale);
    context.rotate((-turn * Math.PI) / 180);
    context.lineWidth = 6;
    context.strokeStyle = "white";
    context.strokeRect(-half, -half, 2 * half, 2 * half);
    context.lineWidth = 3;
    context.strokeStyle = "#0173b2";
    context.strokeRect(-half, -half, 2 * half, 2 * half);
    context.font = "bold 20px sans-serif";
    context.fillStyle = "#0173b2";
    context.fillRect(-half, -half, 28, 26);
    context.fillStyle = "white";
    context.fillText(n + 1, -half + 7, -half + 20);
    context.restore();
  });
  return canvas;
}

// The distribution over ages as a curve, its interval shaded.
function curve(shares, low, high, years) {
  const svg = element("svg", { viewBox: "0 0 101 40", role: "img" });
  svg.setAttribute("aria-label", `How likely each age is; most between ${years}`);
  const top = Math.max(...shares);
  const points = [...shares].map((share, age) => `${age + 0.5},${36 - (34 * share) / top}`);
  svg.append(
    element("rect", { x: low, width: high - low + 1, y: 0, height: 36, class: "held" }),
    element("polygon", { points: `0.5,36 ${points.join(" ")} 100.5,36`, class: "share" }),
  );
  for (const age of [0, 20, 40, 60, 80, 100]) {
    const text = element("text", { x: Math.min(Math.max(age + 0.5, 2), 96), y: 40 });
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
  drop.addEventListener(event, (dragged) => {
    dragged.preventDefault();
    drop.classList.add("over");
  });
}
for (const event of ["dragleave", "drop"]) {
  drop.addEventListener(event, (dragged) => {
    dragged.preventDefault();
    drop.classList.remove("over");
  });
}
drop.addEventListener("drop", ({ dataTransfer }) => take([...dataTransfer.files]));
document.querySelector("#forget").addEventListener("click", () => {
  results.replaceChildren();
  say("Forgotten. Choose a photo.");
});
