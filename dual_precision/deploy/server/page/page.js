"use strict";
// Both modes of a network beside each other, and what the budget does. No library, no network.

const byId = (id) => document.getElementById(id);
const UNITS = { latency: "ms, 95th percentile", bit_operations: "BitOps an image", energy: "nJ an image" };
let about = null;
let pixels = null; // Uint8Array of the image shown
let running = 0; // requests of the stream that wait for their answer

// An .npy of uint8 with `count` copies of one image: what the server takes.
function npy(image, shape, count) {
  let head = `{'descr': '|u1', 'fortran_order': False, 'shape': (${[count, ...shape].join(", ")},), }`;
  head += " ".repeat(63 - ((10 + head.length) % 64)) + "\n";
  const body = new Uint8Array(10 + head.length + count * image.length);
  body.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, head.length & 255, head.length >> 8]);
  for (let i = 0; i < head.length; i++) body[10 + i] = head.charCodeAt(i);
  for (let i = 0; i < count; i++) body.set(image, 10 + head.length + i * image.length);
  return body;
}

function fromNpy(buffer) {
  const bytes = new Uint8Array(buffer);
  return bytes.slice(10 + bytes[8] + 256 * bytes[9]);
}

async function json(path, options) {
  const answer = await fetch(path, options);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error || answer.status);
  return found;
}

function draw(canvas, image) {
  const [height, width, channels] = about.shape;
  canvas.width = width;
  canvas.height = height;
  const data = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) data.data[4 * i + c] = image[channels * i + (channels === 3 ? c : 0)];
    data.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(data, 0, 0);
}

// The middle square of any picture that the browser can show, in the size of the network.
async function takeFile(file) {
  const picture = await createImageBitmap(file);
  const [height, width, channels] = about.shape;
  const canvas = new OffscreenCanvas(width, height);
  const side = Math.min(picture.width, picture.height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  const at = [(picture.width - side) / 2, (picture.height - side) / 2];
  context.drawImage(picture, ...at, side, side, 0, 0, width, height);
  const rgba = context.getImageData(0, 0, width, height).data;
  const image = new Uint8Array(height * width * channels);
  for (let i = 0; i < width * height; i++) {
    const [r, g, b] = rgba.slice(4 * i, 4 * i + 3);
    if (channels === 3) image.set([r, g, b], 3 * i);
    else image[i] = Math.round(0.299 * r + 0.587 * g + 0.114 * b);
  }
  await show(image, "");
}

const nameOf = (index) => about.classes[index] || `class ${index}`;

async function ask(precision, image, count) {
  const start = performance.now();
  const body = npy(image, about.shape, count);
  const found = await json(`predict?precision=${precision}`, { method: "POST", body });
  found.took = performance.now() - start;
  return found;
}

function card(title, kind, found) {
  const priced = about.modes.find((own) => own.name === found.mode);
  const ranked = found.probabilities[0].map((p, i) => [p, i]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  const bars = ranked.map(([p, i]) => `<div class="bar"><span>${nameOf(i)}</span><span><i style="width:${100 * p}%"></i></span><span>${(100 * p).toFixed(1)} %</span></div>`);
  const bytes = priced ? `${priced.bytes.toLocaleString("en")} bytes, ` : "";
  return `<div class="mode ${kind}" data-mode="${found.mode}" data-class="${found.classes[0]}"><h3>${title}: ${nameOf(found.classes[0])}</h3>${bars.join("")}
    <p class="facts">computed in ${found.milliseconds.computed.toFixed(2)} ms, answered in ${found.took.toFixed(1)} ms<br>${bytes}${(found.bit_operations / 1e6).toFixed(0)} million BitOps</p></div>`;
}

const asked = () => document.querySelector("input[name=asked]:checked").value;

async function show(image, truth) {
  pixels = image;
  draw(byId("shown"), image);
  byId("truth").textContent = truth;
  try {
    const [low, high, chosen] = [await ask("low", image, 1), await ask("high", image, 1), await ask(asked(), image, 1)];
    byId("answers").innerHTML = card("low", "low", low) + card("high", "high", high) + card(`switch (${chosen.mode})`, "switch", chosen);
    const same = low.classes[0] === high.classes[0];
    byId("verdict").textContent = same ? "Both modes agree." : `The modes disagree: low says ${nameOf(low.classes[0])}, high ${nameOf(high.classes[0])}.`;
    byId("verdict").className = same ? "" : "differ";
    byId("error").textContent = "";
  } catch (error) {
    byId("error").textContent = error.message;
  }
}

async function listSamples() {
  const { labels } = await json("samples");
  if (!labels.length) byId("samples").textContent = "none here: the data set is not prepared";
  for (let i = 0; i < labels.length; i++) {
    const image = fromNpy(await (await fetch(`samples/${i}.npy`)).arrayBuffer());
    const canvas = document.createElement("canvas");
    draw(canvas, image);
    canvas.title = nameOf(labels[i]);
    canvas.onclick = () => {
      for (const other of byId("samples").children) other.className = "";
      canvas.className = "on";
      show(image, `it is: ${nameOf(labels[i])}`);
    };
    byId("samples").append(canvas);
  }
}

// A stream of requests, bounded: no more than 20 wait at a time.
function stream() {
  const rate = Number(byId("rate").value);
  byId("rates").textContent = rate;
  setTimeout(stream, rate ? 1000 / rate : 200);
  if (!rate || !pixels || running >= 20) return;
  running++;
  ask(asked(), pixels, Number(byId("count").value))
    .then((found) => { byId("stream").textContent = `last: ${found.mode}, ${found.took.toFixed(0)} ms, a batch of ${found.batch}`; })
    .catch((error) => { byId("stream").textContent = error.message; })
    .finally(() => { running--; });
}

function plot(history) {
  const shown = history.slice(-300), left = 70, right = 830, modes = about.modes.map((own) => own.name);
  const x = (i) => left + ((right - left) * (i + 300 - shown.length)) / 299;
  const line = (key, top, height, most, colour) => {
    const points = shown.map((row, i) => [x(i), row[key]]).filter(([, y]) => y !== null);
    const place = ([at, y]) => `${at.toFixed(1)},${(top + height - (height * Math.min(y, most)) / most).toFixed(1)}`;
    return `<polyline fill="none" stroke="${colour}" stroke-width="1.5" points="${points.map(place).join(" ")}"/>`;
  };
  const most = (key, least) => Math.max(least, ...shown.map((row) => row[key] || 0));
  const images = most("images", 10), slowest = most("p95", about.budget.kind === "latency" ? 1.3 * about.budget.target : 10);
  const part = (top, name, value) => `<text x="6" y="${top + 14}">${name}</text><text x="${right + 6}" y="${top + 14}">${value}</text><line x1="${left}" x2="${right}" y1="${top + 60}" y2="${top + 60}" stroke="#ccc"/>`;
  let svg = part(5, "images/s", images.toFixed(0)) + line("images", 5, 60, images, "#555");
  svg += part(80, "p95, ms", slowest.toFixed(0)) + line("p95", 80, 60, slowest, "#b3261e");
  if (about.budget.kind === "latency") {
    const y = 140 - (60 * about.budget.target) / slowest;
    svg += `<line x1="${left}" x2="${right}" y1="${y}" y2="${y}" stroke="#b3261e" stroke-dasharray="4 4"/>`;
  }
  const ranked = shown.map((row) => ({ mode: modes.indexOf(row.mode) }));
  const steps = ranked.map((row, i) => `${x(i).toFixed(1)},${215 - (45 * row.mode) / Math.max(1, modes.length - 1)}`);
  svg += `<text x="6" y="173">${modes[modes.length - 1]}</text><text x="6" y="219">${modes[0]}</text>`;
  svg += `<polyline fill="none" stroke="#1f77b4" stroke-width="2.5" points="${steps.join(" ")}"/>`;
  byId("plot").innerHTML = svg;
}

async function refresh() {
  try {
    about = await json("about");
    const budget = `${about.budget.target.toLocaleString("en")} ${UNITS[about.budget.kind]}`;
    const state = about.failed || (about.complete ? "" : " · the rest of the file is loading");
    byId("about").textContent = `${about.network}, images ${about.shape.join(" x ")} · budget: ${budget} · it takes ${about.chosen}${state}`;
    plot(await json("history"));
  } catch (error) {
    byId("about").textContent = error.message;
  }
  setTimeout(refresh, 500);
}

async function start() {
  await refresh();
  if (!about) return void setTimeout(() => location.reload(), 1500); // still loading
  await listSamples();
  stream();
}

const drop = byId("drop");
drop.ondragover = (event) => { event.preventDefault(); drop.className = "over"; };
drop.ondragleave = () => { drop.className = ""; };
drop.ondrop = (event) => {
  event.preventDefault();
  drop.className = "";
  const given = event.dataTransfer.files[0];
  if (given) takeFile(given).catch(() => { byId("error").textContent = "that is no image this browser can show"; });
};
byId("file").onchange = (event) => takeFile(event.target.files[0]).catch(() => { byId("error").textContent = "that is no image this browser can show"; });
document.querySelectorAll("input[name=asked]").forEach((radio) => { radio.onchange = () => pixels && show(pixels, byId("truth").textContent); });
start();
