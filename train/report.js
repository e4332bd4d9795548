// Draws the figures of a report and lets its filters act on all figures and tables at once.
"use strict";
(async () => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const specs = read("specs"), datasets = read("datasets");
  const root = document.documentElement;
  const controls = document.querySelectorAll("[data-parameter]");
  const figures = [];
  const options = {
    mode: "vega-lite", renderer: "svg", tooltip: { theme: "light" },
    actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
  };

  // What the controls say: {shown_activation: [...], chosen_depth: 64}; null leaves a figure as it was drawn.
  function settings() {
    const values = {};
    for (const control of controls) {
      const name = control.dataset.parameter;
      if (control.type === "checkbox") {
        values[name] ??= [];
        if (control.checked) values[name].push(JSON.parse(control.value));
      } else {
        values[name] = JSON.parse(control.value);
      }
    }
    return values;
  }

  async function apply() {
    const values = settings();
    for (const figure of figures) {
      const wanted = (parameter) => values[parameter.name] ?? parameter.value;
      const changed = figure.driven.filter((p) => JSON.stringify(wanted(p)) !== JSON.stringify(figure.now[p.name]));
      if (!changed.length) continue;
      for (const parameter of changed) figure.now[parameter.name] = wanted(parameter);
      if (figure.spec.facet?.row && figure.spec.facet?.column) {
        // A grid that lost a row or a column keeps its old cells (vega 6): draw it anew.
        const params = figure.spec.params.map((p) => (p.name in figure.now ? { ...p, value: figure.now[p.name] } : p));
        figure.view.finalize();
        ({ view: figure.view } = await vegaEmbed(figure.place, { ...figure.spec, params }, options));
      } else {
        for (const parameter of changed) figure.view.signal(parameter.name, wanted(parameter));
        await figure.view.resize().runAsync();
      }
    }
    for (const cell of document.querySelectorAll("td[data-parameter-of]")) cell.parentElement.hidden = false;
    for (const cell of document.querySelectorAll("td[data-parameter-of]")) {
      const shown = values[cell.dataset.parameterOf];
      if (shown && !shown.some((value) => String(value) === cell.textContent)) cell.parentElement.hidden = true;
    }
  }

  // One run at a time, and one more if something changed meanwhile.
  let running = false, again = false;
  async function update() {
    if (running) { again = true; return; }
    running = true;
    do { again = false; await apply(); } while (again);
    running = false;
    root.dataset.updates = String(Number(root.dataset.updates ?? 0) + 1);
  }

  for (const control of controls) control.addEventListener("change", update);
  for (const button of document.querySelectorAll("[data-set-all]")) {
    button.addEventListener("click", () => {
      for (const box of button.closest("fieldset").querySelectorAll("input")) {
        box.checked = button.dataset.setAll === "true";
      }
      update();
    });
  }

  for (const header of document.querySelectorAll("table.sortable thead th")) {
    header.querySelector("button").addEventListener("click", () => {
      const body = header.closest("table").tBodies[0], column = header.cellIndex;
      const down = header.getAttribute("aria-sort") === "ascending";
      for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [p, q] = [key(a), key(b)], x = parseFloat(p), y = parseFloat(q);
        if (Number.isNaN(x) || Number.isNaN(y)) {
          return Number.isNaN(x) && Number.isNaN(y) ? p.localeCompare(q) * (down ? -1 : 1) : Number.isNaN(x) - Number.isNaN(y);
        }
        return (x === y ? 0 : x < y ? -1 : 1) * (down ? -1 : 1);
      };
      body.append(...[...body.rows].sort(compare));
    });
  }

  let drawn = 0;
  for (const [name, spec] of Object.entries(specs)) {
    const place = document.getElementById(`view-${name}`);
    try {
      spec.datasets = Object.fromEntries(Object.keys(spec.datasets ?? {}).map((key) => [key, datasets[key]]));
      const { view } = await vegaEmbed(place, spec, options);
      const driven = (spec.params ?? []).filter((p) => /^(shown|chosen)_/.test(p.name));
      figures.push({ place, spec, view, driven, now: Object.fromEntries(driven.map((p) => [p.name, p.value])) });
      place.dataset.state = "drawn";
      drawn += 1;
    } catch (error) {
      place.dataset.state = "failed";
      const words = document.createElement("p");
      words.className = "error";
      words.textContent = `This figure could not be drawn: ${error.message}. The folder figures/ holds it as a picture.`;
      place.replaceChildren(words);
    }
  }
  root.dataset.drawn = String(drawn);
})();
