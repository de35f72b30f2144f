// Tables that are changed in place: a row keeps its focus and its selection while its numbers move. Text is set as text,
// never as HTML: names come from outside.

/**
 * Shows rows in a table. A column is {head, of, number?, kind?}; `of` gives text or an element for a row, and `key` what a
 * row is known by.
 */
export function show(table, columns, rows, key, empty) {
  const head = table.tHead;
  if (!head.rows.length) {
    const row = head.insertRow();
    for (const column of columns) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = column.head;
      if (column.number) cell.className = "number";
      row.append(cell);
    }
  }
  const body = table.tBodies[0];
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const wanted = rows.length ? rows : [null];
  wanted.forEach((item, place) => {
    const name = item === null ? "" : key(item);
    let row = known.get(name);
    known.delete(name);
    if (!row) {
      row = document.createElement("tr");
      row.dataset.key = name;
    }
    if (body.rows[place] !== row) body.insertBefore(row, body.rows[place] ?? null);
    if (item === null) fillEmpty(row, columns.length, empty);
    else fill(row, columns, item);
  });
  for (const row of known.values()) row.remove();
}

function fillEmpty(row, width, text) {
  if (!row.cells.length) row.insertCell();
  row.cells[0].colSpan = width;
  row.cells[0].className = "empty";
  row.cells[0].textContent = text;
}

function fill(row, columns, item) {
  while (row.cells.length < columns.length) row.insertCell();
  columns.forEach((column, place) => {
    const cell = row.cells[place];
    const value = column.of(item, cell);
    cell.dataset.head = column.head;
    const names = [column.number ? "number" : "", column.kind?.(item) ?? ""].filter(Boolean).join(" ");
    if (cell.className !== names) cell.className = names;
    if (value instanceof Node) {
      if (cell.firstChild !== value) cell.replaceChildren(value);
    } else if (cell.textContent !== String(value)) {
      cell.textContent = value;
    }
  });
}
