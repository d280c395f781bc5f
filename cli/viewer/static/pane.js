"use strict";
// One slide with its overlay, scale bar, ruler and marked tile.

const TILE_PX = 256;
const SVG = "http://www.w3.org/2000/svg";

function lengthWords(um, digits) {
  const rounded = (value) => String(Number(value.toPrecision(digits)));
  return um >= 1000 ? `${rounded(um / 1000)} mm` : `${rounded(um)} µm`;
}

class Pane {
  constructor(parent, shared, handlers) {
    this.shared = shared; // what all panes follow: overlay, opacity, whether drags measure
    this.handlers = handlers;
    this.patient = this.slide = this.ruler = null;
    this.tile = -1;
    this.busySince = 0;
    this.box = make("section", "", "pane");
    this.canvas = make("div", "", "canvas");
    this.caption = make("p", "", "caption");
    this.busy = make("p", "", "busy");
    this.busy.role = "status";
    this.empty = make("p", "This slide has neither a file nor tiles.", "empty");
    this.scale = make("p", "", "scale");
    this.scaleWords = make("span");
    this.scaleBar = make("span", "", "bar");
    this.scale.append(this.scaleWords, this.scaleBar);
    this.drawing = document.createElementNS(SVG, "svg");
    this.drawing.classList.add("ruler");
    this.box.append(this.canvas, this.drawing, this.caption, this.busy, this.empty, this.scale);
    parent.append(this.box);
    this.viewer = OpenSeadragon({
      element: this.canvas, drawer: "canvas", showNavigationControl: false, showNavigator: true,
      navigatorPosition: "BOTTOM_LEFT", navigatorSizeRatio: 0.16, navigatorAutoFade: false,
      navigatorBackground: "#fff", navigatorBorderColor: "#999",
      navigatorDisplayRegionColor: "#d55e00", navigatorOpacity: 1, keyboardNavEnabled: false,
      maxZoomPixelRatio: 4, visibilityRatio: 0.5, animationTime: 0.5, timeout: 600000,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      imageLoaderLimit: shared.atOnce, // more only wait for each other
    });
    this.viewer.addHandler("canvas-click", (event) => this.clicked(event));
    this.viewer.addHandler("canvas-press", (event) => this.startRuler(event));
    this.viewer.addHandler("canvas-drag", (event) => this.dragRuler(event));
    this.viewer.addHandler("tile-load-failed", () => handlers.failed());
    this.viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; });
    for (const name of ["open", "animation", "resize"]) {
      this.viewer.addHandler(name, () => { this.drawScale(); this.drawRuler(); });
    }
    for (const name of ["animation-finish", "open"]) {
      this.viewer.addHandler(name, () => handlers.moved(this));
    }
    this.box.addEventListener("pointerdown", () => handlers.activated(this), true);
    this.timer = setInterval(() => this.tellBusy(), 250);
  }

  destroy() {
    clearInterval(this.timer);
    this.viewer.destroy();
    this.box.remove();
  }

  source(folder, suffix) {
    const { slide, size_px0: [width, height] } = this.slide;
    const maxLevel = Math.ceil(Math.log2(Math.max(width, height)));
    return {
      width, height, tileSize: TILE_PX, tileOverlap: 0, maxLevel, minLevel: Math.min(8, maxLevel),
      getTileUrl: (level, x, y) => `slides/${slide}/${folder}${level}/${x}_${y}.${suffix}`,
    };
  }

  overlaySource() {
    return this.source(`overlays/${this.shared.overlay}/`, "png");
  }

  close() {
    this.viewer.close();
    this.markTile(-1);
    this.slide = this.ruler = null;
    this.busySince = performance.now();
    this.drawScale();
    this.drawRuler();
  }

  // Open a slide, then go to a tile (by index) or a place (centre and width in level-0 px), if any.
  open(patient, slide, { tile = -1, place = null } = {}) {
    this.close();
    Object.assign(this, { patient, slide });
    this.caption.textContent = `${patient.patient_id} · ${slide.slide_id}`;
    this.empty.hidden = Boolean(slide.size_px0);
    if (!slide.size_px0) {
      this.handlers.moved(this);
      return;
    }
    const sources = [{ tileSource: this.source("", "jpg") }];
    if (slide.tiles && this.shared.overlay >= 0) {
      sources.push({ tileSource: this.overlaySource(), opacity: this.shared.opacity() });
    }
    this.viewer.addOnceHandler("open", () => {
      if (place) this.goTo(place, true);
      if (tile >= 0) this.showTile(tile, true);
    });
    this.viewer.open(sources);
  }

  item() {
    return this.slide && this.viewer.world.getItemAt(0);
  }

  // The first look at a slide without a pyramid reads it once, which may take half a minute.
  tellBusy() {
    const item = this.item();
    if (!item || item.getFullyLoaded()) this.busySince = performance.now();
    const seconds = (performance.now() - this.busySince) / 1000;
    this.busy.hidden = seconds < 0.7;
    const isRead = item && item.getTilesToDraw().length;
    const what = isRead ? "Loading …" : "Reading the whole slide, once …";
    this.busy.textContent = seconds < 2 ? what : `${what} ${Math.floor(seconds)} s`;
  }

  changeOverlay() {
    const old = this.viewer.world.getItemAt(1);
    if (old) this.viewer.world.removeItem(old);
    if (!this.item() || !this.slide.tiles || this.shared.overlay < 0) return;
    this.viewer.addTiledImage({
      tileSource: this.overlaySource(), opacity: this.shared.opacity(), index: 1,
    });
  }

  changeOpacity() {
    const overlay = this.viewer.world.getItemAt(1);
    if (overlay) overlay.setOpacity(this.shared.opacity());
  }

  // ---- Places, in level-0 px

  place() {
    const item = this.item();
    if (!item) return null;
    const bounds = item.viewportToImageRectangle(this.viewer.viewport.getBounds(false));
    const centre = bounds.getCenter();
    return { x: Math.round(centre.x), y: Math.round(centre.y), width: Math.round(bounds.width) };
  }

  goTo({ x, y, width }, immediately = false) {
    const item = this.item();
    if (!item) return;
    const shape = this.viewer.viewport.getBounds();
    const height = (width * shape.height) / shape.width;
    this.viewer.viewport.fitBounds(
      item.imageToViewportRectangle(x - width / 2, y - height / 2, width, height), immediately,
    );
  }

  // The viewport limits no zoom by itself: outwards the slide would shrink to a dot.
  zoomBy(factor) {
    this.viewer.viewport.zoomBy(factor);
    this.viewer.viewport.applyConstraints();
  }

  umPerPx0() {
    const [x, y] = this.slide && this.slide.tiles ? this.slide.tiles.mpp_xy : [0, 0];
    return x > 0 && y > 0 ? [x, y] : null;
  }

  drawScale() {
    const item = this.item();
    const mpp = this.umPerPx0();
    this.scale.hidden = !item || !mpp;
    if (this.scale.hidden) return;
    const umPerPx = mpp[0] / item.viewportToImageZoom(this.viewer.viewport.getZoom(true));
    const most = 160 * umPerPx;
    const power = 10 ** Math.floor(Math.log10(most));
    const um = [5, 2, 1].find((factor) => factor * power <= most) * power;
    const words = lengthWords(um, 1);
    this.scaleWords.textContent = this.slide.tiles.mpp_is_assumed ? `${words} (assumed)` : words;
    this.scaleBar.style.width = `${um / umPerPx}px`;
  }

  // ---- The ruler: a drag from one point to another

  startRuler(event) {
    const item = this.item();
    if (!item || !this.shared.measures) return;
    const start = item.viewerElementToImageCoordinates(event.position);
    this.ruler = { start, end: start };
    this.drawRuler();
  }

  dragRuler(event) {
    if (!this.shared.measures || !this.ruler) return;
    event.preventDefaultAction = true; // the slide stays where it is
    this.ruler.end = this.item().viewerElementToImageCoordinates(event.position);
    this.drawRuler();
  }

  rulerWords() {
    const { start, end } = this.ruler;
    const [x, y] = [end.x - start.x, end.y - start.y];
    const mpp = this.umPerPx0();
    if (!mpp) return `${Math.round(Math.hypot(x, y)).toLocaleString("en")} px`;
    const words = lengthWords(Math.hypot(x * mpp[0], y * mpp[1]), 3);
    return this.slide.tiles.mpp_is_assumed ? `${words} (mpp assumed)` : words;
  }

  drawRuler() {
    this.drawing.replaceChildren();
    const item = this.item();
    if (!item || !this.ruler) return;
    const [start, end] = [this.ruler.start, this.ruler.end].map(
      (point) => item.imageToViewerElementCoordinates(point),
    );
    for (const kind of ["under", "over"]) {
      const line = document.createElementNS(SVG, "line");
      const ends = { x1: start.x, y1: start.y, x2: end.x, y2: end.y, class: kind };
      for (const [name, value] of Object.entries(ends)) line.setAttribute(name, value);
      this.drawing.append(line);
    }
    const text = document.createElementNS(SVG, "text");
    text.setAttribute("x", end.x + 10);
    text.setAttribute("y", end.y - 8);
    text.textContent = this.rulerWords();
    this.drawing.append(text);
  }

  // ---- Tiles

  clicked(event) {
    if (!event.quick || this.shared.measures || !this.slide || !this.slide.tiles) return;
    event.preventDefaultAction = true; // a click asks for a tile; a double click zooms
    const item = this.item();
    if (!item) return;
    const { x, y } = item.viewerElementToImageCoordinates(event.position);
    const { coords_px0: coords, span_px0: [width, height] } = this.slide.tiles;
    this.showTile(coords.findLastIndex(
      ([left, top]) => left <= x && x < left + width && top <= y && y < top + height,
    ));
  }

  showTile(index, goesThere = false) {
    this.markTile(index);
    if (index >= 0 && goesThere) {
      const { coords_px0: coords, span_px0: [width, height] } = this.slide.tiles;
      const [x, y] = coords[index];
      this.goTo({ x: x + width / 2, y: y + height / 2, width: 6 * width });
    }
    this.handlers.tileShown(this, index);
  }

  markTile(index) {
    if (this.mark) this.viewer.removeOverlay(this.mark);
    this.mark = null;
    this.tile = index;
    if (index < 0 || !this.item()) return;
    this.mark = make("div", "", "mark");
    const [x, y] = this.slide.tiles.coords_px0[index];
    const [width, height] = this.slide.tiles.span_px0;
    const location = this.item().imageToViewportRectangle(x, y, width, height);
    this.viewer.addOverlay({ element: this.mark, location });
  }
}
