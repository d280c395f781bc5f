"use strict";
// All text reaches the page by textContent: names of patients and slides are never read as HTML.

const TILE_PX = 256;
const byId = (id) => document.getElementById(id);
const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

const state = { run: null, order: [], sort: { key: -1, down: false }, patient: -1, request: 0, slide: null, findings: [], busySince: 0 };
let viewer = null;

function make(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

async function fetchJson(address) {
  const answer = await fetch(address);
  const content = await answer.json().catch(() => ({ error: answer.statusText }));
  if (!answer.ok) throw new Error(content.error);
  return content;
}

function showFindings(findings) {
  byId("findings").replaceChildren(...findings.map(([text, kind]) => make("li", text, kind)));
}

// ---- The list of patients

function cells() {
  return ["Patient", ...state.run.classes.map((name) => `P(${name})`), "Slides"];
}

function sortValue(patient, key) {
  if (key === 0) return patient.patient_id;
  if (key <= state.run.classes.length) return patient.probabilities[key - 1];
  return patient.n_slides;
}

function sortBy(key) {
  const { sort, run } = state;
  state.sort = { key, down: sort.key === key ? !sort.down : key > 0 };
  const sign = state.sort.down ? -1 : 1;
  const compare = (a, b) =>
    typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  state.order.sort(
    (a, b) => sign * compare(sortValue(run.patients[a], key), sortValue(run.patients[b], key)) || a - b,
  );
  drawList();
}

function drawList() {
  const { run, order, sort } = state;
  byId("columns").replaceChildren(...cells().map((name, key) => {
    const head = make("th", "", key ? "number" : "");
    head.scope = "col";
    if (sort.key === key) head.ariaSort = sort.down ? "descending" : "ascending";
    const button = make("button", name);
    button.type = "button";
    button.addEventListener("click", () => {
      sortBy(key);
      byId("columns").children[key].firstChild.focus();
    });
    head.append(button);
    return head;
  }));
  byId("rows").replaceChildren(...order.map((number) => drawRow(number, run.patients[number])));
}

function drawRow(number, patient) {
  const row = make("tr");
  row.dataset.number = number;
  row.ariaCurrent = String(number === state.patient);
  const head = make("th");
  head.scope = "row";
  const name = make("button", patient.patient_id);
  name.type = "button";
  head.append(name);
  const remarks = [
    patient.out_of_fold ? "out of fold" : patient.seen ? "seen in training" : "", patient.status,
  ].filter(Boolean);
  if (remarks.length) head.append(make("small", remarks.join("; ")));
  row.append(
    head,
    ...patient.probabilities.map((value) => make("td", value.toFixed(3), "number")),
    make("td", String(patient.n_slides), "number"),
  );
  row.addEventListener("click", () => openPatient(number));
  return row;
}

function markRow() {
  for (const row of byId("rows").children) {
    const chosen = Number(row.dataset.number) === state.patient;
    row.ariaCurrent = String(chosen);
    if (chosen) row.scrollIntoView({ block: "nearest" });
  }
  const position = state.order.indexOf(state.patient);
  byId("previous").disabled = position <= 0;
  byId("next").disabled = position >= state.order.length - 1;
}

function step(by) {
  const next = state.order[state.order.indexOf(state.patient) + by];
  if (next !== undefined) openPatient(next);
}

// ---- One patient

async function openPatient(number) {
  state.patient = number;
  const request = ++state.request;
  markRow();
  try {
    const patient = await fetchJson(`patients/${number}.json`);
    if (request === state.request) showPatient(patient); // else another was chosen meanwhile
  } catch (error) {
    if (request !== state.request) return;
    closeSlide();
    byId("patient").textContent = `Patient ${state.run.patients[number].patient_id}`;
    byId("facts").textContent = "";
    byId("slides").replaceChildren();
    showFindings([[`Cannot be shown: ${error.message}`, "warning"]]);
  }
}

function showPatient(patient) {
  const { classes } = state.run;
  byId("patient").textContent = `Patient ${patient.patient_id}`;
  const shares = classes.map((name, i) => `${name} ${patient.probabilities[i].toFixed(3)}`);
  byId("facts").textContent = [
    shares.join(", "), count(patient.slides.length, "slide"), count(patient.n_tiles, "tile"),
    patient.status,
  ].filter(Boolean).join(" · ");
  state.findings = patientFindings(patient);
  byId("slides").replaceChildren(...patient.slides.map((slide) => {
    const share = slide.share === undefined ? "" : ` · ${(100 * slide.share).toFixed(1)} % of the attention`;
    const button = make("button", slide.slide_id + share);
    button.type = "button";
    button.addEventListener("click", () => openSlide(patient, slide));
    return button;
  }));
  openSlide(patient, patient.slides[0]);
}

function patientFindings(patient) {
  if (!patient.seen) return [];
  const as = patient.seen_as === patient.patient_id ? "" : ` (as ${patient.seen_as}, by a slide of the same content)`;
  const numbers = patient.out_of_fold
    ? "The probabilities are those of heads not trained on it; the colours are those of the run's heads, which were."
    : "Neither the probabilities nor the colours show what it would predict for a new patient.";
  return [[`The run was trained on this patient${as}. ${numbers}`, "warning"]];
}

// ---- One slide

function source(slide, folder, suffix) {
  const [width, height] = slide.size_px0;
  const maxLevel = Math.ceil(Math.log2(Math.max(width, height)));
  return {
    width, height, tileSize: TILE_PX, tileOverlap: 0, maxLevel, minLevel: Math.min(8, maxLevel),
    getTileUrl: (level, x, y) => `slides/${slide.slide}/${folder}${level}/${x}_${y}.${suffix}`,
  };
}

function closeSlide() {
  viewer.close();
  hideTile();
  state.slide = null;
  state.busySince = performance.now();
  drawScale();
}

function openSlide(patient, slide) {
  closeSlide();
  state.slide = { ...slide, nTiles: patient.n_tiles };
  patient.slides.forEach((each, i) => {
    byId("slides").children[i].ariaPressed = String(each === slide);
  });
  showFindings([...state.findings, ...slide.notes.map((note) => [note, ""])]);
  byId("empty").hidden = Boolean(slide.size_px0);
  if (!slide.size_px0) return;
  const sources = [{ tileSource: source(slide, "", "jpg") }];
  if (slide.tiles) {
    sources.push({ tileSource: source(slide, "colours/", "png"), opacity: opacity() });
  }
  viewer.open(sources);
}

// The first look at a slide without a pyramid reads it once, which may take half a minute.
function tellBusy() {
  const item = viewer.world.getItemAt(0);
  if (!item || item.getFullyLoaded()) state.busySince = performance.now();
  const seconds = (performance.now() - state.busySince) / 1000;
  byId("busy").hidden = seconds < 0.7;
  const what = item && item.getTilesToDraw().length ? "Loading …" : "Reading the whole slide, once …";
  byId("busy").textContent = seconds < 2 ? what : `${what} ${Math.floor(seconds)} s`;
}

function opacity() {
  return Number(byId("opacity").value) / 100;
}

function setOpacity() {
  byId("opacity-value").textContent = `${byId("opacity").value} %`;
  const colours = viewer.world.getItemAt(1);
  if (colours) colours.setOpacity(opacity());
}

function drawScale() {
  const item = viewer.world.getItemAt(0);
  const tiles = state.slide && state.slide.tiles;
  byId("scale").hidden = !item || !tiles || !(tiles.mpp_x > 0);
  if (byId("scale").hidden) return;
  const umPerPx = tiles.mpp_x / item.viewportToImageZoom(viewer.viewport.getZoom(true));
  const most = 160 * umPerPx;
  const power = 10 ** Math.floor(Math.log10(most));
  const um = [5, 2, 1].find((factor) => factor * power <= most) * power;
  const words = um >= 1000 ? `${um / 1000} mm` : `${Number(um.toPrecision(1))} µm`;
  byId("scale-words").textContent = tiles.mpp_is_assumed ? `${words} (assumed)` : words;
  byId("scale-bar").style.width = `${um / umPerPx}px`;
}

// ---- One tile

function tileAt(x, y) {
  const { coords_px0: coords, span_px0: [width, height] } = state.slide.tiles;
  return coords.findLastIndex(
    ([left, top]) => left <= x && x < left + width && top <= y && y < top + height,
  );
}

function clicked(event) {
  if (!event.quick || !state.slide || !state.slide.tiles) return;
  event.preventDefaultAction = true; // a click asks for a tile; a double click zooms
  const item = viewer.world.getItemAt(0);
  if (!item) return;
  const point = item.viewerElementToImageCoordinates(event.position);
  const index = tileAt(point.x, point.y);
  if (index < 0) hideTile();
  else showTile(index);
}

function showTile(index) {
  const { slide, tiles, nTiles, has_picture: hasPicture } = state.slide;
  hideTile();
  const [x, y] = tiles.coords_px0[index];
  const [width, height] = tiles.span_px0;
  const mark = make("div", "", "mark");
  mark.id = "mark";
  const item = viewer.world.getItemAt(0);
  viewer.addOverlay({ element: mark, location: item.imageToViewportRectangle(x, y, width, height) });
  const facts = [
    ["percentile", tiles.percentile[index].toFixed(1)],
    ["attention", tiles.attention[index].toPrecision(3)],
    ["× equal share", (tiles.attention[index] * nTiles).toFixed(2)],
    ["x, px", x.toLocaleString("en")],
    ["y, px", y.toLocaleString("en")],
  ];
  byId("tile-facts").replaceChildren(
    ...facts.flatMap(([name, value]) => [make("dt", name), make("dd", value)]),
  );
  const picture = byId("tile-picture");
  picture.hidden = !hasPicture;
  if (hasPicture) picture.src = `slides/${slide}/tiles/${index}.png`;
  else picture.removeAttribute("src");
  byId("tile").hidden = false;
}

function hideTile() {
  byId("tile").hidden = true;
  viewer.removeOverlay("mark");
}

// ---- Keys

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.type === "range") return;
  const deeds = {
    ArrowDown: () => step(1),
    ArrowUp: () => step(-1),
    ArrowRight: () => stepSlide(1),
    ArrowLeft: () => stepSlide(-1),
    "+": () => viewer.viewport.zoomBy(1.5),
    "-": () => viewer.viewport.zoomBy(1 / 1.5),
    0: () => viewer.viewport.goHome(),
    Escape: hideTile,
  };
  if (!(event.key in deeds)) return;
  deeds[event.key]();
  event.preventDefault();
}

function stepSlide(by) {
  const buttons = [...byId("slides").children];
  const next = buttons[buttons.findIndex((button) => button.ariaPressed === "true") + by];
  if (next) next.click();
}

async function start() {
  state.run = await fetchJson("patients.json");
  viewer = OpenSeadragon({
    element: byId("pane"), drawer: "canvas", showNavigationControl: false, showNavigator: true,
    navigatorPosition: "BOTTOM_LEFT", navigatorSizeRatio: 0.16, navigatorAutoFade: false,
    navigatorBackground: "#fff", navigatorBorderColor: "#999",
    navigatorDisplayRegionColor: "#d55e00", navigatorOpacity: 1, keyboardNavEnabled: false,
    maxZoomPixelRatio: 4, visibilityRatio: 0.5, animationTime: 0.5, timeout: 600000,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    imageLoaderLimit: state.run.n_at_once, // more only wait for each other
  });
  viewer.addHandler("canvas-click", clicked);
  viewer.addHandler("tile-load-failed", () => showFindings([
    ...state.findings, ["Parts of the slide could not be loaded. Is mil view still running?", "warning"],
  ]));
  for (const name of ["open", "animation", "resize"]) viewer.addHandler(name, drawScale);
  viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("zoom-in").addEventListener("click", () => viewer.viewport.zoomBy(1.5));
  byId("zoom-out").addEventListener("click", () => viewer.viewport.zoomBy(1 / 1.5));
  byId("whole").addEventListener("click", () => viewer.viewport.goHome());
  byId("close").addEventListener("click", hideTile);
  byId("opacity").addEventListener("input", setOpacity);
  document.addEventListener("keydown", pressed);
  setInterval(tellBusy, 250);
  state.order = state.run.patients.map((_, number) => number);
  const { run, classes, prior } = state.run;
  document.title = `${run} – mil view`;
  const shares = classes.map((name, i) => `${name} ${prior[i].toFixed(3)}`).join(", ");
  byId("about").textContent =
    `Run ${run}, head ${state.run.head}. Calibrated probabilities at a prior of ${shares}.` +
    (state.run.with_slides ? "" : " No slides were given, so that the colours lie on plain ground.");
  drawList();
  openPatient(0);
}

start().catch((error) => showFindings([[`Cannot be shown: ${error.message}`, "warning"]]));
