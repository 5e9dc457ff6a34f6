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

// Show the views that the chooser's radio buttons name; a star in a view's key stands for any. Without script all show.
const chooser = document.querySelector(".chooser");
if (chooser) {
  const show = () => {
    const chosen = [...chooser.querySelectorAll(":checked")].map((input) => input.value);
    for (const view of document.querySelectorAll(".view"))
      view.hidden = view.dataset.view.split(" ").some((part, i) => part !== "*" && part !== chosen[i]);
    for (const section of document.querySelectorAll("main > section")) {
      const views = [...section.querySelectorAll(".view")], none = section.querySelector(".none");
      if (views.length && !none) section.insertAdjacentHTML("beforeend", '<p class="absent none">Nothing was run for this choice.</p>');
      if (views.length) section.querySelector(".none").hidden = views.some((view) => !view.hidden);
    }
  };
  document.body.classList.add("chosen");
  chooser.addEventListener("change", show);
  show();
}
