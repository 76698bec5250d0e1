"use strict";
// Both modes of a network beside each other, and what the budget does. No library, no network.

const byId = (id) => document.getElementById(id);
const UNITS = { latency: "ms, 95th percentile", bit_operations: "BitOps an image", energy: "nJ an image" };
let about = null;
let pixels = null; // Uint8Array of the image shown
let running = 0; // requests of the stream that wait for their answer
let shows = 0; // images shown so far: an answer to an earlier one comes too late

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

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
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: is it still running?");
  }
  const text = await answer.text(); // not all that HTTP says is JSON
  if (answer.ok) return JSON.parse(text);
  let why = text;
  try {
    why = JSON.parse(text).error;
  } catch {}
  throw new Error(why || `the server says ${answer.status}`);
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
  if (!file) return; // nothing was chosen
  if (!about) return void complain("the network is loading: try again in a moment");
  const [height, width, channels] = about.shape;
  if (channels !== 1 && channels !== 3) return void complain(`the network takes ${channels} channels, which no picture has: send it an .npy`);
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    return void complain("that is no image this browser can show");
  }
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

function complain(text) {
  byId("error").textContent = text;
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

// One mode that does not answer, as it still loads, hides no other.
async function answerOf(precision, image) {
  try {
    return await ask(precision, image, 1);
  } catch (error) {
    return { error: error.message };
  }
}

async function show(image, truth) {
  const own = ++shows;
  pixels = image;
  draw(byId("shown"), image);
  byId("truth").textContent = truth;
  const [low, high, chosen] = [await answerOf("low", image), await answerOf("high", image), await answerOf(asked(), image)];
  if (own !== shows) return;
  const given = { low: ["low", low], high: ["high", high], switch: [`switch (${chosen.mode})`, chosen] };
  byId("answers").innerHTML = Object.entries(given).map(([kind, [title, found]]) => (found.error ? "" : card(title, kind, found))).join("");
  complain([...new Set([low, high, chosen].map((found) => found.error).filter(Boolean))].join("; "));
  const both = !low.error && !high.error, same = both && low.classes[0] === high.classes[0];
  byId("verdict").textContent = !both ? "" : same ? "Both modes agree." : `The modes disagree: low says ${nameOf(low.classes[0])}, high ${nameOf(high.classes[0])}.`;
  byId("verdict").className = same ? "" : "differ";
}

async function listSamples() {
  const { labels } = await json("samples");
  if (!labels.length) byId("samples").textContent = "none here: the data set is not prepared";
  for (let i = 0; i < labels.length; i++) {
    const image = fromNpy(await (await fetch(`samples/${i}.npy`)).arrayBuffer());
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    draw(canvas, image);
    button.title = nameOf(labels[i]);
    button.setAttribute("aria-label", `test image ${i + 1}: ${nameOf(labels[i])}`);
    button.onclick = () => {
      for (const other of byId("samples").children) other.className = "";
      button.className = "on";
      show(image, `it is: ${nameOf(labels[i])}`);
    };
    button.append(canvas);
    byId("samples").append(button);
  }
}

// A stream of requests, bounded: no more than 20 wait at a time.
function stream() {
  const rate = Number(byId("rate").value);
  byId("rates").textContent = rate;
  setTimeout(stream, rate ? 1000 / rate : 200);
  if (rate && !pixels) byId("stream").textContent = "choose an image first: the stream sends copies of it";
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
    const before = about;
    about = await json("about");
    if (before && !before.complete && about.complete && pixels) show(pixels, byId("truth").textContent); // high came
    const budget = `${about.budget.target.toLocaleString("en")} ${UNITS[about.budget.kind]}`;
    const state = about.failed || (about.complete ? "" : "the rest of the file is loading");
    byId("about").textContent = `${about.network}, images ${about.shape.join(" x ")} · budget: ${budget} · it takes ${about.chosen}${state && ` · ${state}`}`;
    byId("about").className = about.failed ? "wrong" : "";
    const auto = document.querySelector("input[value=auto]");
    auto.disabled = about.complete && !about.cascade;
    auto.parentElement.title = auto.disabled ? "the file has no cascade: see python -m experiments.deploy cascade" : "";
    plot(await json("history"));
  } catch (error) {
    byId("about").textContent = error.message;
    byId("about").className = "wrong";
  }
  setTimeout(refresh, 500); // also where nothing answers: it may come back
}

async function start() {
  refresh();
  while (!about) await sleep(100); // still loading
  stream();
  await listSamples().catch((error) => complain(error.message));
}

const drop = byId("drop");
drop.ondragover = () => { drop.className = "over"; };
drop.ondragleave = () => { drop.className = ""; };
// Anywhere on the page: the browser would leave it, and show the file instead.
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  drop.className = "";
  takeFile(event.dataTransfer.files[0]);
};
byId("file").onchange = (event) => takeFile(event.target.files[0]);
document.querySelectorAll("input[name=asked]").forEach((radio) => { radio.onchange = () => pixels && show(pixels, byId("truth").textContent); });
start();
