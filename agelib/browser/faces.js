// Finds the faces of a photo and cuts them out, as agelib/detector.py and agelib/photo.py
// do: the same networks, the same steps, so that a face gets the same age here and there.

const SMALLEST = 20;
const SHRINK = 0.709;
const CHANCES = [0.6, 0.7, 0.9];
const WINDOW = 12;
const STRIDE = 2;
const LONGEST = 1600;
export const SIDE = 200;
// eyes, nose and corners of the mouth in the training faces, as shares of the side
const POINTS = [
  [0.298, 0.292],
  [0.691, 0.292],
  [0.493, 0.521],
  [0.318, 0.692],
  [0.675, 0.692],
];

// An image: { width, height, data }, three bytes a pixel, in rows.

// The faces of an image, from left to right: centre x and y, side and turn, in pixels
// and in degrees counterclockwise, and how sure the detector is.
export async function find(image, networks) {
  const share = Math.min(1, LONGEST / Math.max(image.width, image.height));
  const size = [image.width, image.height].map((n) => Math.max(1, nearest(share * n)));
  const small = share < 1 ? resize(image, ...size) : image;
  const seen = await detect(small, networks);
  const scale = image.width / small.width;
  const framed = seen.map(({ points, sure }) => ({
    ...framing(points.map(([x, y]) => [x * scale, y * scale])),
    sure,
  }));
  return framed.sort((a, b) => a.x - b.x);
}

// As Python rounds: a half goes to the even number.
function nearest(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2) : Math.round(x);
}

async function detect(image, [first, second, third]) {
  let boxes = (await proposals(image, first)).map(square);
  let [moves, chances] = await look(image, boxes, second, 24, ["dense_2", "softmax_1"]);
  let passed = boxes
    .map((box, n) => ({ box, move: row(moves, n, 4), chance: chances[2 * n + 1] }))
    .filter(({ chance }) => chance > CHANCES[1]);
  passed = nms(passed, 0.7);
  boxes = passed.map(({ box, move }) => square(moved(box, move)));
  const names = ["dense_5", "dense_6", "softmax_2"];
  let places;
  [moves, places, chances] = await look(image, boxes, third, 48, names);
  const found = boxes
    .map((box, n) => {
      const [left, top, right, bottom] = box;
      const place = row(places, n, 10);
      const points = POINTS.map((_, k) => [
        left + place[k] * (right - left),
        top + place[5 + k] * (bottom - top),
      ]);
      return { points, box: moved(box, row(moves, n, 4)), chance: chances[2 * n + 1] };
    })
    .filter(({ chance }) => chance > CHANCES[2]);
  return outermost(found).map(({ points, chance }) => ({ points, sure: chance }));
}

// Boxes of left, top, right and bottom, from all sizes of the picture.
async function proposals(image, network) {
  const all = [];
  let scale = WINDOW / SMALLEST;
  for (; Math.min(image.width, image.height) * scale >= WINDOW; scale *= SHRINK) {
    const width = Math.ceil(image.width * scale);
    const height = Math.ceil(image.height * scale);
    const small = shrink(image, width, height);
    const input = transposed(small.data, 1, height, width);
    const { conv2d_4: move, softmax: chance } = await network(input, [1, width, height, 3]);
    const [, columns, rows] = chance.dims;
    const here = [];
    for (let i = 0; i < columns; i++) {
      for (let j = 0; j < rows; j++) {
        const n = i * rows + j;
        if (chance.data[2 * n + 1] <= CHANCES[0]) continue;
        const [left, top] = [i, j].map((at) => single((STRIDE * at) / single(scale)));
        const window = single(WINDOW / scale);
        const box = [left, top, single(left + window), single(top + window)];
        here.push({ box, move: row(move.data, n, 4), chance: chance.data[2 * n + 1] });
      }
    }
    all.push(...nms(here, 0.5));
  }
  return nms(all, 0.7).map(({ box, move }) => moved(box, move));
}

// What a network says about each box, cut out as a square of `side` pixels.
async function look(image, boxes, network, side, names) {
  if (!boxes.length) return names.map(() => []);
  const cut = new Float32Array(boxes.length * side * side * 3);
  boxes.forEach((box, n) => align(image, box, side, cut, n * side * side * 3));
  const input = transposed(cut, boxes.length, side, side);
  const told = await network(input, [boxes.length, side, side, 3]);
  return names.map((name) => told[name].data);
}

// (pictures, height, width, 3) to (pictures, width, height, 3), from -1 to 1.
function transposed(pixels, pictures, height, width) {
  const out = new Float32Array(pixels.length);
  for (let n = 0; n < pictures; n++) {
    const start = n * height * width * 3;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const from = start + (y * width + x) * 3;
        const to = start + (x * height + y) * 3;
        for (let c = 0; c < 3; c++) out[to + c] = (pixels[from + c] - 127.5) / 128;
      }
    }
  }
  return out;
}

// Pillow's bicubic resize with reducing_gap=2, to the last bit: an image several times
// too large is averaged in blocks first.
export function resize(image, newWidth, newHeight) {
  const factors = [image.width / newWidth, image.height / newHeight].map((times) =>
    Math.max(1, Math.floor(times / 2)),
  );
  const blocks = factors.some((factor) => factor > 1) ? reduce(image, ...factors) : image;
  const across = bicubicWeights(image.width / factors[0], newWidth, blocks.width);
  const down = bicubicWeights(image.height / factors[1], newHeight, blocks.height);
  const wide = new Uint8ClampedArray(blocks.height * newWidth * 3);
  for (let y = 0; y < blocks.height; y++) {
    for (let x = 0; x < newWidth; x++) {
      const [first, weights] = across[x];
      const at = (y * blocks.width + first) * 3;
      weigh(blocks.data, at, 3, weights, wide, (y * newWidth + x) * 3);
    }
  }
  const data = new Uint8ClampedArray(newHeight * newWidth * 3);
  for (let y = 0; y < newHeight; y++) {
    const [first, weights] = down[y];
    for (let x = 0; x < newWidth; x++) {
      const at = (first * newWidth + x) * 3;
      weigh(wide, at, newWidth * 3, weights, data, (y * newWidth + x) * 3);
    }
  }
  return { width: newWidth, height: newHeight, data };
}

// of the whole numbers by which Pillow weighs bytes
const ONE = 2 ** 22;

function weigh(data, at, step, weights, out, to) {
  for (let c = 0; c < 3; c++) {
    let sum = ONE / 2;
    for (let k = 0; k < weights.length; k++) sum += weights[k] * data[at + k * step + c];
    out[to + c] = Math.floor(sum / ONE);
  }
}

// For each new pixel the first of the old ones that count, and the weights of those.
function bicubicWeights(length, size, pixels) {
  const scale = length / size;
  const support = 2 * Math.max(scale, 1);
  return Array.from({ length: size }, (_, n) => {
    const centre = (n + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(pixels, Math.trunc(centre + support + 0.5));
    const weights = [];
    for (let at = first; at < end; at++) {
      const x = Math.abs((at - centre + 0.5) / Math.max(scale, 1));
      const near = (1.5 * x - 2.5) * x * x + 1;
      const far = ((-0.5 * x + 2.5) * x - 4) * x + 2;
      weights.push(x < 1 ? near : x < 2 ? far : 0);
    }
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return [first, weights.map((w) => Math.trunc((w / sum) * ONE + Math.sign(w) * 0.5))];
  });
}

// Means of blocks of pixels, those at the edges of what is left of a block.
function reduce({ width, height, data }, across, down) {
  const [newWidth, newHeight] = [Math.ceil(width / across), Math.ceil(height / down)];
  const out = new Uint8ClampedArray(newWidth * newHeight * 3);
  for (let y = 0; y < newHeight; y++) {
    const bottom = Math.min((y + 1) * down, height);
    for (let x = 0; x < newWidth; x++) {
      const right = Math.min((x + 1) * across, width);
      const count = (right - x * across) * (bottom - y * down);
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let j = y * down; j < bottom; j++) {
          for (let i = x * across; i < right; i++) sum += data[(j * width + i) * 3 + c];
        }
        out[(y * newWidth + x) * 3 + c] = level(sum, count);
      }
    }
  }
  return { width: newWidth, height: newHeight, data: out };
}

// As Pillow's whole numbers tell it, which may be a level too low.
function level(sum, count) {
  return Math.floor(((sum + Math.floor(count / 2)) * Math.floor(2 ** 24 / count)) / 2 ** 24);
}

// Means over areas, as OpenCV's INTER_AREA.
export function shrink({ width, height, data }, newWidth, newHeight) {
  const across = areas(width, newWidth);
  const down = areas(height, newHeight);
  const wide = new Float32Array(height * newWidth * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < newWidth; x++) {
      const to = (y * newWidth + x) * 3;
      for (const [from, weight] of across[x]) {
        const at = (y * width + from) * 3;
        for (let c = 0; c < 3; c++) wide[to + c] += weight * data[at + c];
      }
    }
  }
  const out = new Uint8ClampedArray(newHeight * newWidth * 3);
  const line = new Float32Array(newWidth * 3);
  for (let y = 0; y < newHeight; y++) {
    line.fill(0);
    for (const [from, weight] of down[y]) {
      const at = from * newWidth * 3;
      for (let i = 0; i < line.length; i++) line[i] += weight * wide[at + i];
    }
    out.set(line, y * newWidth * 3);
  }
  return { width: newWidth, height: newHeight, data: out };
}

// For each new pixel which of the old ones it covers, and how much of it each is.
function areas(old, size) {
  const step = old / size;
  return Array.from({ length: size }, (_, n) => {
    const [start, end] = [n * step, Math.min((n + 1) * step, old)];
    const parts = [];
    for (let at = Math.floor(start); at < end - 1e-6; at++) {
      const covered = Math.min(at + 1, end) - Math.max(at, start);
      if (covered > 1e-6) parts.push([at, covered / (end - start)]);
    }
    return parts;
  });
}

// torchvision's roi_align, aligned, of one box; outside the picture it is black.
function align({ width, height, data }, [left, top, right, bottom], side, out, start) {
  const [boxWidth, boxHeight] = [right - left, bottom - top];
  const samplesX = Math.ceil(boxWidth / side);
  const samplesY = Math.ceil(boxHeight / side);
  const count = Math.max(samplesX * samplesY, 1);
  for (let j = 0; j < side; j++) {
    for (let i = 0; i < side; i++) {
      const to = start + (j * side + i) * 3;
      for (let sy = 0; sy < samplesY; sy++) {
        const y = top - 0.5 + ((j + (sy + 0.5) / samplesY) * boxHeight) / side;
        for (let sx = 0; sx < samplesX; sx++) {
          const x = left - 0.5 + ((i + (sx + 0.5) / samplesX) * boxWidth) / side;
          if (y < -1 || y > height || x < -1 || x > width) continue;
          const [y0, y1, dy] = between(y, height);
          const [x0, x1, dx] = between(x, width);
          for (let c = 0; c < 3; c++) {
            const upper =
              data[(y0 * width + x0) * 3 + c] * (1 - dx) + data[(y0 * width + x1) * 3 + c] * dx;
            const lower =
              data[(y1 * width + x0) * 3 + c] * (1 - dx) + data[(y1 * width + x1) * 3 + c] * dx;
            out[to + c] += (upper * (1 - dy) + lower * dy) / count;
          }
        }
      }
    }
  }
}

function between(place, length) {
  const at = Math.max(place, 0);
  const low = Math.floor(at);
  return low >= length - 1 ? [length - 1, length - 1, 0] : [low, low + 1, at - low];
}

function row(values, n, length) {
  return values.slice(n * length, (n + 1) * length);
}

// Boxes on a grid overlap by exactly the share that decides: so what is left after
// rounding must be the same as in Python, where boxes are in single precision.
const single = Math.fround;

function moved(box, move) {
  const sides = [single(box[2] - box[0]), single(box[3] - box[1])];
  return box.map((edge, k) => single(edge + single(move[k] * sides[k % 2])));
}

function square([left, top, right, bottom]) {
  const half = Math.max(single(right - left), single(bottom - top)) / 2;
  const [x, y] = [single(left + right) / 2, single(top + bottom) / 2];
  return [x - half, y - half, x + half, y + half].map(single);
}

function area([left, top, right, bottom]) {
  return single(Math.max(0, single(right - left)) * Math.max(0, single(bottom - top)));
}

function shared(a, b) {
  return area([
    Math.max(a[0], b[0]),
    Math.max(a[1], b[1]),
    Math.min(a[2], b[2]),
    Math.min(a[3], b[3]),
  ]);
}

// The likeliest boxes, of which no two overlap by more than a share of their union.
function nms(found, most) {
  const kept = [];
  for (const one of found.toSorted((a, b) => b.chance - a.chance)) {
    const overlaps = kept.some(({ box }) => {
      const both = shared(box, one.box);
      const either = single(single(area(box) + area(one.box)) - both);
      return single(both / either) > most;
    });
    if (!overlaps) kept.push(one);
  }
  return kept;
}

// The likeliest boxes, of which none lies mostly in another.
function outermost(found) {
  const kept = [];
  for (const one of found.toSorted((a, b) => b.chance - a.chance)) {
    const inside = ({ box }) =>
      shared(box, one.box) > 0.7 * Math.min(area(box), area(one.box));
    if (!kept.some(inside)) kept.push(one);
  }
  return kept;
}

// The similarity that brings POINTS closest to those of a face.
function framing(points) {
  const mean = (all) => [0, 1].map((k) => all.reduce((sum, p) => sum + p[k], 0) / all.length);
  const [middle, wantedMiddle] = [mean(points), mean(POINTS)];
  let [re, im, norm] = [0, 0, 0];
  points.forEach(([x, y], k) => {
    const [px, py] = [x - middle[0], y - middle[1]];
    const [wx, wy] = [POINTS[k][0] - wantedMiddle[0], POINTS[k][1] - wantedMiddle[1]];
    re += px * wx + py * wy;
    im += py * wx - px * wy;
    norm += wx * wx + wy * wy;
  });
  [re, im] = [re / norm, im / norm];
  const [offX, offY] = [0.5 - wantedMiddle[0], 0.5 - wantedMiddle[1]];
  return {
    x: middle[0] + re * offX - im * offY,
    y: middle[1] + re * offY + im * offX,
    side: Math.hypot(re, im),
    turn: (-Math.atan2(im, re) * 180) / Math.PI,
  };
}

// The face of 200 pixels a side: cut out in a multiple of that size by Pillow's bicubic
// filter, then averaged; what lies outside the photo is black.
export function crop(image, { x, y, side, turn }) {
  const times = Math.max(1, nearest(side / SIDE));
  const size = times * SIDE;
  const angle = (-turn * Math.PI) / 180;
  const [re, im] = [(side / size) * Math.cos(angle), (side / size) * Math.sin(angle)];
  const cornerX = x - (re - im) * size * 0.5;
  const cornerY = y - (re + im) * size * 0.5;
  const sums = new Uint32Array(SIDE * SIDE * 3);
  const pixel = [0, 0, 0];
  for (let j = 0; j < size; j++) {
    for (let i = 0; i < size; i++) {
      const atX = re * (i + 0.5) - im * (j + 0.5) + cornerX;
      const atY = im * (i + 0.5) + re * (j + 0.5) + cornerY;
      if (!bicubic(image, atX, atY, pixel)) continue;
      const to = (Math.floor(j / times) * SIDE + Math.floor(i / times)) * 3;
      for (let c = 0; c < 3; c++) sums[to + c] += pixel[c];
    }
  }
  const data = Uint8ClampedArray.from(sums, (sum) => level(sum, times ** 2));
  return { width: SIDE, height: SIDE, data };
}

// Without arrays of its own, which would make it eight times slower.
function bicubic(image, atX, atY, pixel) {
  const { width, height, data } = image;
  if (atX < 0 || atX >= width || atY < 0 || atY >= height) return false;
  const x = Math.floor(atX - 0.5);
  const y = Math.floor(atY - 0.5);
  const dx = atX - 0.5 - x;
  const dy = atY - 0.5 - y;
  const left = clip(x - 1, width) * 3;
  const middle = clip(x, width) * 3;
  const right = clip(x + 1, width) * 3;
  const end = clip(x + 2, width) * 3;
  const line = (n, c) => {
    const start = clip(y + n, height) * width * 3 + c;
    const first = data[start + left];
    const second = data[start + middle];
    return cubic(first, second, data[start + right], data[start + end], dx);
  };
  for (let c = 0; c < 3; c++) {
    const value = cubic(line(-1, c), line(0, c), line(1, c), line(2, c), dy);
    pixel[c] = Math.floor(clip(value, 256));
  }
  return true;
}

function clip(place, length) {
  return Math.min(Math.max(place, 0), length - 1);
}

function cubic(a, b, c, d, at) {
  const first = c - a;
  const second = 2 * (a - b) + c - d;
  const third = b - a - c + d;
  return b + at * (first + at * (second + at * third));
}
