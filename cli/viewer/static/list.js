"use strict";
// The list of patients. All text reaches the page by textContent: names are never read as HTML.

const byId = (id) => document.getElementById(id);
const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

function make(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

function makeButton(text, onClick, title = "") {
  const button = make("button", text);
  button.type = "button";
  button.title = title;
  button.addEventListener("click", onClick);
  return button;
}

const N_DRAWN = 100; // rows at first, and more each time that the list is scrolled to its end

class PatientList {
  constructor(run, onChosen) {
    this.run = run;
    this.onChosen = onChosen;
    this.sort = { key: -1, down: false };
    this.order = run.patients.map((_, number) => number);
    this.chosen = -1;
    // Rows are made once, and only those near the view are laid out: the width of a column
    // depends on every row, which takes a fifth of a second for a thousand of them.
    this.rows = run.patients.map((patient, number) => this.makeRow(patient, number));
    this.texts = this.rows.map((row) => row.textContent.toLowerCase());
    byId("filter").addEventListener("input", () => this.draw());
    byId("list").addEventListener("scroll", () => this.drawMore());
    this.draw();
  }

  columns() {
    const value = (read, isText = false) => ({ read, isText });
    const { classes, with_labels: withLabels } = this.run;
    return [
      ["Patient", value((p) => p.patient_id, true)],
      ...(withLabels ? [["Label", value((p) => p.label, true)]] : []),
      ...classes.map((name, i) => [`P(${name})`, value((p) => p.probabilities[i])]),
      ["Slides", value((p) => p.n_slides)],
    ];
  }

  makeRow(patient, number) {
    const row = make("tr");
    row.dataset.number = number;
    const head = make("th");
    head.scope = "row";
    head.append(makeButton(patient.patient_id, () => {}));
    const remarks = [
      patient.out_of_fold ? "out of fold" : patient.seen ? "seen in training" : "",
      patient.unlike ? "unlike the training patients" : "", patient.status,
    ].filter(Boolean);
    if (remarks.length) head.append(make("small", remarks.join("; ")));
    row.append(head);
    if (this.run.with_labels) row.append(make("td", patient.label));
    row.append(
      ...patient.probabilities.map((share) => make("td", share.toFixed(3), "number")),
      make("td", String(patient.n_slides), "number"),
    );
    row.addEventListener("click", () => this.onChosen(number));
    return row;
  }

  sortBy(key) {
    const { read, isText } = this.columns()[key][1];
    this.sort = { key, down: this.sort.key === key ? !this.sort.down : !isText };
    const sign = this.sort.down ? -1 : 1;
    const { compare } = new Intl.Collator("en", { numeric: true });
    const { patients } = this.run;
    this.order.sort((a, b) => {
      const [first, second] = [read(patients[a]), read(patients[b])];
      return sign * (isText ? compare(first, second) : first - second) || a - b;
    });
    this.draw();
  }

  draw() {
    byId("columns").replaceChildren(...this.columns().map(([name, { isText }], key) => {
      const head = make("th", "", isText ? "" : "number");
      head.scope = "col";
      if (this.sort.key === key) head.ariaSort = this.sort.down ? "descending" : "ascending";
      head.append(makeButton(name, () => {
        this.sortBy(key);
        byId("columns").children[key].firstChild.focus();
      }));
      return head;
    }));
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    this.shown = this.order.filter(
      (number) => words.every((word) => this.texts[number].includes(word)),
    );
    byId("rows").replaceChildren();
    this.drawTo(N_DRAWN);
    byId("n-shown").textContent = words.length
      ? `${this.shown.length.toLocaleString("en")} of ${count(this.order.length, "patient")}` : "";
    this.tellEnds();
  }

  drawTo(end) {
    const start = byId("rows").children.length;
    byId("rows").append(...this.shown.slice(start, end).map((number) => this.rows[number]));
  }

  drawMore() {
    const { scrollTop, clientHeight, scrollHeight } = byId("list");
    if (scrollTop + 2 * clientHeight > scrollHeight) this.drawTo(byId("rows").children.length + N_DRAWN);
  }

  choose(number) {
    if (this.chosen >= 0) this.rows[this.chosen].ariaCurrent = "false";
    this.chosen = number;
    const row = this.rows[number];
    row.ariaCurrent = "true";
    const place = this.shown.indexOf(number);
    if (place >= byId("rows").children.length) this.drawTo(place + N_DRAWN);
    if (row.isConnected) row.scrollIntoView({ block: "nearest" });
    this.tellEnds();
  }

  tellEnds() {
    byId("previous").disabled = this.neighbour(-1) === undefined;
    byId("next").disabled = this.neighbour(1) === undefined;
  }

  neighbour(by) {
    const place = this.shown.indexOf(this.chosen);
    return place < 0 ? this.shown[0] : this.shown[place + by];
  }
}
