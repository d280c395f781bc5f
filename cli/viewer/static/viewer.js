"use strict";
// The page: patients, one or two slides, and the keys.

const N_STRIP = 10;
const shared = { atOnce: 2, overlay: 0, opacity: overlayOpacity, measures: false };
const panes = [];
let run = null;
let list = null;
let active = null; // the pane that keys and the list work on
let nRequests = 0;
let findings = [];

async function fetchJson(address) {
  const answer = await fetch(address);
  const content = await answer.json().catch(() => ({ error: answer.statusText }));
  if (!answer.ok) throw new Error(content.error);
  return content;
}

function showFindings(rows) {
  byId("findings").replaceChildren(...rows.map(([text, kind]) => make("li", text, kind)));
}

// ---- One patient

async function openPatient(number, where = {}) {
  list.choose(number);
  const request = ++nRequests;
  try {
    const patient = await fetchJson(`patients/${number}.json`);
    if (request !== nRequests) return; // another was chosen meanwhile
    patient.number = number;
    patient.ranking = rankTiles(patient);
    const slide = patient.slides.find((each) => each.slide_id === where.slide) || patient.slides[0];
    active.open(patient, slide, where);
    showActive(where.notice);
  } catch (error) {
    if (request !== nRequests) return;
    active.close();
    active.patient = null;
    byId("patient").textContent = `Patient ${run.patients[number].patient_id}`;
    byId("facts").textContent = "";
    byId("slides").replaceChildren();
    byId("strip").hidden = true;
    showFindings([[`Cannot be shown: ${error.message}`, "warning"]]);
  }
}

function rankTiles(patient) {
  return patient.slides
    .flatMap((slide) => (slide.tiles ? slide.tiles.attention : []).map((attention, tile) => ({
      slide, tile, share: attention * patient.n_tiles,
    })))
    .sort((a, b) => b.share - a.share);
}

function step(by) {
  const number = list.neighbour(by);
  if (number !== undefined) openPatient(number);
}

// Show what belongs to the active pane: facts, slides and most attended tiles of its patient.
function showActive(notice = "") {
  const { patient, slide } = active;
  for (const [number, pane] of panes.entries()) {
    pane.box.ariaLabel = `Slide ${number + 1}`;
    pane.box.classList.toggle("active", pane === active && panes.length > 1);
  }
  if (!patient) return;
  list.choose(patient.number);
  byId("patient").textContent = `Patient ${patient.patient_id}`;
  byId("facts").textContent = patientFacts(patient).join(" · ");
  findings = [...(notice ? [[notice, "warning"]] : []), ...patientFindings(patient)];
  byId("slides").replaceChildren(...patient.slides.map((each) => {
    const share = each.share === undefined ? "" : ` · ${(100 * each.share).toFixed(1)} % of the attention`;
    const button = makeButton(each.slide_id + share, () => { active.open(patient, each); showActive(); });
    button.ariaPressed = String(each === slide);
    return button;
  }));
  showFindings([...findings, ...slide.notes.map((note) => [note, ""])]);
  byId("strip").hidden = !patient.ranking.length;
  byId("strip-tiles").replaceChildren(...patient.ranking.slice(0, N_STRIP).map(stripButton));
  showTilePanel(active, active.tile);
}

function patientFacts(patient) {
  const shares = run.classes.map((name, i) => `${name} ${patient.probabilities[i].toFixed(3)}`);
  const isAll = patient.set.length === run.classes.length;
  const set = patient.set.length ? patient.set.join(" or ") : "none";
  return [
    patient.label ? `true label ${patient.label}` : "",
    shares.join(", "),
    isAll ? "no class ruled out" : `prediction set: ${set}`,
    patient.typicality === null ? "" : `typicality ${patient.typicality.toFixed(3)}`,
    count(patient.slides.length, "slide"), count(patient.n_tiles, "tile"), patient.status,
  ].filter(Boolean);
}

function patientFindings(patient) {
  const rows = [];
  if (patient.unlike) {
    rows.push(["Unlike the training patients: the probabilities may mean nothing here.", "warning"]);
  }
  if (patient.seen) {
    const as = patient.seen_as === patient.patient_id ? "" : ` (as ${patient.seen_as}, by a slide of the same content)`;
    const numbers = patient.out_of_fold
      ? "The probabilities are those of heads not trained on it; the attention is that of the run's heads, which were."
      : "Neither the probabilities nor the attention show what it would predict for a new patient.";
    rows.push([`The run was trained on this patient${as}. ${numbers}`, "warning"]);
  }
  return rows;
}

// ---- The most attended tiles

function stripButton({ slide, tile, share }, rank) {
  const words = `${rank + 1}: ${share.toFixed(1)} ×`;
  const button = makeButton("", () => goToRank(rank), `Tile ${rank + 1} by attention, ${share.toFixed(2)} times an equal share`);
  if (slide.has_picture) {
    const picture = make("img");
    picture.src = `slides/${slide.slide}/tiles/${tile}.png`;
    picture.alt = "";
    picture.loading = "lazy";
    button.append(picture);
  }
  button.append(make("span", words));
  return button;
}

function goToRank(rank) {
  const { patient } = active;
  const entry = patient && patient.ranking[rank];
  if (!entry) return;
  if (entry.slide === active.slide) active.showTile(entry.tile, true);
  else {
    active.open(patient, entry.slide, { tile: entry.tile });
    showActive();
  }
}

function stepTile(by) {
  const { patient, slide, tile } = active;
  if (!patient) return;
  const rank = patient.ranking.findIndex((each) => each.slide === slide && each.tile === tile);
  goToRank(rank < 0 ? 0 : rank + by);
}

function showTilePanel(pane, index) {
  byId("tile").hidden = index < 0;
  if (index < 0) return;
  const { patient, slide } = pane;
  const { tiles } = slide;
  const [x, y] = tiles.coords_px0[index];
  const rank = patient.ranking.findIndex((each) => each.slide === slide && each.tile === index);
  const facts = [
    ["rank", `${rank + 1} of ${patient.n_tiles.toLocaleString("en")}`],
    ["percentile", tiles.percentile[index].toFixed(1)],
    ["attention", tiles.attention[index].toPrecision(3)],
    ["× equal share", (tiles.attention[index] * patient.n_tiles).toFixed(2)],
    ...(tiles.is_unlike ? [["unlike training", tiles.is_unlike[index] ? "yes" : "no"]] : []),
    ["x, px", x.toLocaleString("en")],
    ["y, px", y.toLocaleString("en")],
  ];
  byId("tile-facts").replaceChildren(
    ...facts.map(([name, value]) => {
      const row = make("div");
      row.append(make("dt", name), make("dd", value));
      return row;
    }),
  );
  const picture = byId("tile-picture");
  picture.hidden = !slide.has_picture;
  if (slide.has_picture) picture.src = `slides/${slide.slide}/tiles/${index}.png`;
  else picture.removeAttribute("src");
}

// ---- Panes

const handlers = {
  activated: (pane) => {
    if (pane === active) return;
    nRequests += 1; // what was asked for belongs to the other pane
    active = pane;
    showActive();
  },
  failed: () => showFindings([
    ...findings, ["Parts of the slide could not be loaded. Is mil view still running?", "warning"],
  ]),
  moved: (pane) => { if (pane === active) writeAddress(); },
  tileShown: (pane, index) => { if (pane === active) showTilePanel(pane, index); },
};

function addPane() {
  panes.push(new Pane(byId("panes"), shared, handlers));
  return panes.at(-1);
}

// The slide in view stays on the right while the left one goes on to others.
function toggleSplit() {
  if (panes.length > 1) {
    const [left, right] = panes.splice(0);
    const kept = active;
    (kept === left ? right : left).destroy();
    panes.push(kept);
  } else if (active.patient) {
    const { patient, slide } = active;
    const place = active.place();
    addPane().open(patient, slide, { place });
  }
  byId("split").ariaPressed = String(panes.length > 1);
  showActive();
}

function setMeasures(measures) {
  shared.measures = measures;
  byId("measure").ariaPressed = String(measures);
  byId("panes").classList.toggle("measures", measures);
  if (measures) return;
  for (const pane of panes) {
    pane.ruler = null;
    pane.drawRuler();
  }
}

function setOverlay(index) {
  shared.overlay = index;
  byId("overlay").value = String(index);
  const overlay = run.overlays[index];
  byId("legend").hidden = !overlay;
  byId("fade").hidden = !overlay || overlay.is_outline;
  if (overlay) {
    byId("legend-low").textContent = overlay.low;
    byId("legend-high").textContent = overlay.high;
    byId("legend-picture").src = `legends/${index}.png`;
  }
  for (const pane of panes) pane.changeOverlay();
}

function overlayOpacity() {
  return run.overlays[shared.overlay].is_outline ? 1 : Number(byId("opacity").value) / 100;
}

function setOpacity() {
  byId("opacity-value").textContent = `${byId("opacity").value} %`;
  for (const pane of panes) pane.changeOpacity();
}

// ---- The address: it names patient, slide and place, so that it can be kept and given back

function writeAddress() {
  if (!active.patient || !active.slide) return;
  const place = active.place() || {};
  const parts = { patient: active.patient.patient_id, slide: active.slide.slide_id, ...place };
  history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
}

function openAddress(hash) {
  const parts = new URLSearchParams(hash.slice(1));
  const asked = parts.get("patient");
  const number = run.patients.findIndex((each) => each.patient_id === asked);
  const [x, y, width] = ["x", "y", "width"].map((name) => Number(parts.get(name)));
  const place = width > 0 && Number.isFinite(x + y) ? { x, y, width } : null;
  if (number >= 0) openPatient(number, { slide: parts.get("slide"), place });
  else openPatient(0, { notice: asked && `No patient ${asked} is in this list.` });
}

// ---- Keys

function escape() {
  setMeasures(false);
  active.showTile(-1);
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select")) return;
  const deeds = {
    ArrowDown: () => step(1),
    ArrowUp: () => step(-1),
    ArrowRight: () => stepSlide(1),
    ArrowLeft: () => stepSlide(-1),
    n: () => stepTile(1),
    p: () => stepTile(-1),
    o: () => setOverlay(shared.overlay + 1 < run.overlays.length ? shared.overlay + 1 : -1),
    m: () => setMeasures(!shared.measures),
    s: toggleSplit,
    "/": () => byId("filter").focus(),
    "+": () => active.zoomBy(1.5),
    "=": () => active.zoomBy(1.5), // the key of "+" without shift
    "-": () => active.zoomBy(1 / 1.5),
    0: () => active.viewer.viewport.goHome(),
    Escape: escape,
  };
  if (!(event.key in deeds)) return;
  deeds[event.key]();
  event.preventDefault();
}

function stepSlide(by) {
  const { patient, slide } = active;
  const next = patient && patient.slides[patient.slides.indexOf(slide) + by];
  if (!next) return;
  active.open(patient, next);
  showActive();
}

async function start() {
  run = await fetchJson("patients.json");
  shared.atOnce = run.n_at_once;
  active = addPane();
  list = new PatientList(run, (number) => openPatient(number));
  const options = [...run.overlays.map(({ name }) => name), "no overlay"];
  byId("overlay").replaceChildren(...options.map((name, index) => {
    const option = make("option", name);
    option.value = String(index < run.overlays.length ? index : -1);
    return option;
  }));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("zoom-in").addEventListener("click", () => active.zoomBy(1.5));
  byId("zoom-out").addEventListener("click", () => active.zoomBy(1 / 1.5));
  byId("whole").addEventListener("click", () => active.viewer.viewport.goHome());
  byId("close").addEventListener("click", () => active.showTile(-1));
  byId("measure").addEventListener("click", () => setMeasures(!shared.measures));
  byId("split").addEventListener("click", toggleSplit);
  byId("overlay").addEventListener("change", () => setOverlay(Number(byId("overlay").value)));
  byId("opacity").addEventListener("input", setOpacity);
  document.addEventListener("keydown", pressed);
  // Not sent for the page's own changes, which may already have replaced location.hash.
  window.addEventListener("hashchange", ({ newURL }) => openAddress(new URL(newURL).hash));
  document.title = `${run.run} – mil view`;
  const shares = run.classes.map((name, i) => `${name} ${run.prior[i].toFixed(3)}`).join(", ");
  byId("about").textContent =
    `Run ${run.run}, head ${run.head}. Calibrated probabilities at a prior of ${shares}.` +
    (run.with_slides ? "" : " No slides were given, so that overlays have a plain background.");
  setOverlay(0);
  openAddress(location.hash);
}

start().catch((error) => showFindings([[`Cannot be shown: ${error.message}`, "warning"]]));
