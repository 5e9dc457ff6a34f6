// Sort a table by the column whose button was pressed; cells carry their value in data-v, empty ones stay last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const th = button.closest("th"), body = th.closest("table").tBodies[0], column = th.cellIndex;
    const down = th.getAttribute("aria-sort") !== "descending";
    for (const other of th.parentNode.children) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.v;
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const way = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -way : way;
    };
    body.append(...[...body.rows].sort(order));
  });
}
