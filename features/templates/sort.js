"use strict";
// Tables of the class sortable are sorted by the buttons in their headings; unknown values come last.
function compareValues(a, b) {
  return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
}

function sortTable(table, column) {
  const headings = [...table.tHead.rows[0].cells];
  const heading = headings[column];
  const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const isNumber = heading.classList.contains("number");
  const keyed = [...table.tBodies[0].rows].map((row) => {
    const cell = row.cells[column];
    const value = cell.dataset.value;
    return { row, value: value !== undefined && isNumber ? Number(value) : value };
  });
  keyed.sort((a, b) => {
    if (a.value === undefined || b.value === undefined) {
      return (a.value === undefined) - (b.value === undefined);
    }
    return sign * compareValues(a.value, b.value);
  });
  table.tBodies[0].append(...keyed.map((entry) => entry.row));
  for (const other of headings) {
    if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  }
  heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.querySelector("button")?.addEventListener("click", () => sortTable(table, column));
  });
}
