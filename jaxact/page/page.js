// Draws the figures of a report as the reader's screen wants them and lets its filters act on all figures and tables.
"use strict";
(async () => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const specs = read("specs"), datasets = read("datasets"), darkConfig = read("dark");
  const root = document.documentElement, main = document.querySelector("main");
  const dark = matchMedia("(prefers-color-scheme: dark)"), narrow = matchMedia("(max-width: 640px)");

  // Folds --------------------------------------------------------------------------------------------------

  for (const link of document.querySelectorAll("nav a")) {
    link.addEventListener("click", () => {
      const fold = document.getElementById(link.hash.slice(1))?.closest("details");
      if (fold) fold.open = true;
    });
  }
  for (const button of document.querySelectorAll("[data-unfold]")) {
    button.addEventListener("click", () => {
      const folds = [...button.closest("section").querySelectorAll("details")];
      const open = folds.some((fold) => !fold.open);
      for (const fold of folds) fold.open = open;
      button.textContent = open ? "close all" : "open all";
    });
  }
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("main details:not([open])")].filter((fold) => !fold.closest(".view"));
    for (const fold of folded) fold.open = true;
  });
  addEventListener("afterprint", () => { for (const fold of folded) fold.open = false; });

  // Filters: boxes for what is shown and menus for what is chosen, each once for all figures ------------------

  const driven = (parameter) => /^(shown|chosen)_./.test(parameter.name) && !parameter.select;
  const distinct = (values) => [...new Map(values.map((value) => [JSON.stringify(value), value])).values()];
  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  function boxes(name, field, uses) {
    const values = distinct(uses.flatMap((use) => use.value ?? []));
    if (values.length < 2 || document.querySelector("[data-boxes=none]")) return null;
    const colours = Object.values(specs).map((spec) => spec.usermeta?.colours?.[field] ?? {});
    const labels = values.map((value) => {
      const box = make("input", { type: "checkbox", defaultChecked: true, value: JSON.stringify(value) });
      box.dataset.parameter = name;
      const swatch = make("span", { className: "swatch" });
      swatch.style.background = colours.map((names) => names[value]).find(Boolean) ?? "";
      return make("label", {}, box, ...(swatch.style.background ? [swatch] : []), String(value));
    });
    const buttons = [["all", true], ["none", false]].map(([words, checked]) => {
      const button = make("button", { type: "button" }, words);
      button.dataset.setAll = checked;
      button.addEventListener("click", () => {
        for (const label of labels) label.firstChild.checked = checked;
        update();
      });
      return button;
    });
    return make("fieldset", {}, make("legend", {}, field.replaceAll("_", " ")), ...labels, make("span", {}, buttons[0], " / ", buttons[1]));
  }

  function menu(name, field, uses) {
    const values = distinct(uses.flatMap((use) => use.bind?.options ?? [use.value]));
    if (values.length < 2) return null;
    const defaults = distinct(uses.map((use) => use.value));
    const words = (uses[0].bind?.name || field.replaceAll("_", " ")).trim();
    const option = (value, text, selected) =>
      make("option", { value: JSON.stringify(value), defaultSelected: selected }, text);
    const select = make("select", { ariaLabel: words });
    // Figures with different defaults keep theirs until the reader chooses.
    if (defaults.length > 1) select.append(option(null, "as each figure says", true));
    for (const value of values) select.append(option(value, String(value), defaults.length === 1 && defaults[0] === value));
    select.dataset.parameter = name;
    return make("fieldset", {}, make("legend", {}, words), select);
  }

  function filters() {
    const uses = new Map();
    for (const parameter of Object.values(specs).flatMap((spec) => spec.params ?? []).filter(driven)) {
      uses.set(parameter.name, [...(uses.get(parameter.name) ?? []), parameter]);
    }
    const groups = [["shown_", boxes], ["chosen_", menu]].flatMap(([kind, control]) =>
      [...uses].filter(([name]) => name.startsWith(kind)).map(([name, found]) => control(name, name.slice(kind.length), found)));
    const form = make("form", { className: "filters", ariaLabel: "Filters", autocomplete: "off" }, ...groups.filter(Boolean));
    if (!form.children.length) return form;
    form.prepend("In all figures and tables:");
    document.querySelector(".filtered").prepend(form);
    form.addEventListener("change", () => update());
    return form;
  }

  // What the controls say: {shown_activation: [...], chosen_depth: 64}; null leaves a figure as it was drawn.
  function settings() {
    const values = {};
    for (const control of form.querySelectorAll("[data-parameter]")) {
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

  function hideRows(values) {
    for (const table of document.querySelectorAll("table.sortable")) {
      const columns = [...table.tHead.rows[0].cells].map((head) => values[`shown_${head.dataset.column}`]);
      const agrees = (cell, shown) =>
        !shown || shown.some((value) => String(value) === cell.textContent || value === Number(cell.dataset.sort));
      for (const row of table.tBodies[0].rows) row.hidden = ![...row.cells].every((cell, i) => agrees(cell, columns[i]));
    }
  }

  // Figures ------------------------------------------------------------------------------------------------

  const merged = (below, above) => {
    if (below?.constructor !== Object || above?.constructor !== Object) return above;
    return { ...below, ...Object.fromEntries(Object.entries(above).map(([key, value]) => [key, merged(below[key], value)])) };
  };

  // A chart in one column, its legends below: panels that stood side by side stand under each other.
  function narrowed(node) {
    if (Array.isArray(node)) return node.map(narrowed);
    if (node?.constructor !== Object) return node;
    const page = {};
    for (const [key, child] of Object.entries(node)) {
      if (/^(data|datasets|transform|params|usermeta)$/.test(key)) page[key] = child;
      else if (key === "columns") page[key] = 1;
      else if (key === "hconcat") page.vconcat = narrowed(child);
      else if (key === "facet" && child.column && !child.row) Object.assign(page, { facet: child.column, columns: 1 });
      else if (key === "encoding" && child.column && !child.row) {
        const { column, ...channels } = child;
        page.encoding = narrowed({ ...channels, facet: { ...column, columns: 1 } });
      } else if (key === "legend" && child) page[key] = { ...child, orient: "bottom", direction: undefined, columns: 1 };
      else page[key] = narrowed(child);
    }
    return page;
  }

  function shrunk(node, excess) {
    if (node.spec) return { ...node, spec: shrunk(node.spec, excess) };
    for (const key of ["concat", "vconcat"]) {
      if (node[key]) return { ...node, [key]: node[key].map((child) => shrunk(child, excess)) };
    }
    const width = node.width ?? 300; // Vega-Lite's own
    return typeof width === "number" ? { ...node, width: Math.min(width, Math.max(160, width - excess)) } : node;
  }

  const upright = { legend: { layout: { bottom: { anchor: "start", direction: "vertical" } } } };

  function dressed({ spec, now }) {
    const params = (spec.params ?? []).map((parameter) => {
      const { bind, ...rest } = parameter; // the page has its own widgets
      return driven(parameter) ? { ...rest, value: now[parameter.name] } : parameter;
    });
    const page = { ...spec, params, config: dark.matches ? merged(spec.config ?? {}, darkConfig) : spec.config };
    return narrow.matches ? narrowed({ ...page, config: merged(page.config ?? {}, upright) }) : page;
  }

  async function embed(figure, page) {
    figure.view?.finalize();
    const { view } = await vegaEmbed(figure.place, page, {
      mode: "vega-lite", renderer: "svg", tooltip: { theme: dark.matches ? "dark" : "light" },
      actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
    });
    figure.view = view;
    const drawing = figure.place.querySelector("svg.marks"), width = Number(drawing.getAttribute("width"));
    drawing.style.minWidth = `${(narrow.matches ? 0.9 : 0.7) * width}px`; // smaller is not legible: rather scroll
    return width - main.clientWidth;
  }

  async function draw(figure) {
    try {
      const page = dressed(figure), excess = await embed(figure, page);
      if (narrow.matches && excess > 0) await embed(figure, shrunk(page, excess));
      Object.assign(figure.place.dataset, { state: "drawn", scheme: dark.matches ? "dark" : "light" });
    } catch (error) {
      figure.view = undefined;
      figure.place.dataset.state = "failed";
      const words = `This figure could not be drawn: ${error.message}. ${root.dataset.picture}`;
      figure.place.replaceChildren(make("p", { className: "error" }, words));
    }
  }

  async function apply(anew) {
    const values = settings();
    for (const figure of figures) {
      const changed = {};
      for (const { name, value } of (figure.spec.params ?? []).filter(driven)) {
        const wanted = values[name] ?? value;
        if (JSON.stringify(wanted) !== JSON.stringify(figure.now[name])) changed[name] = wanted;
      }
      Object.assign(figure.now, changed);
      // A grid that lost a row or a column keeps its old cells (vega 6): draw it anew.
      const grid = (figure.spec.facet?.row || figure.spec.facet?.column) && Object.keys(changed).length;
      if (anew || grid || !figure.view) await draw(figure);
      else if (Object.keys(changed).length) {
        for (const [name, value] of Object.entries(changed)) figure.view.signal(name, value);
        await figure.view.resize().runAsync();
      }
    }
    hideRows(values);
  }

  // One run at a time, and one more if something changed meanwhile.
  let running = false, again = false, stale = false;
  async function update(anew = false) {
    stale ||= anew;
    if (running) { again = true; return; }
    running = true;
    do {
      const everything = stale;
      again = stale = false;
      await apply(everything);
    } while (again);
    running = false;
    root.dataset.updates = String(Number(root.dataset.updates ?? 0) + 1);
  }

  // Tables -------------------------------------------------------------------------------------------------

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

  const form = filters();
  const figures = Object.entries(specs).map(([name, spec]) => {
    spec.datasets = Object.fromEntries(Object.keys(spec.datasets ?? {}).map((key) => [key, datasets[key]]));
    const now = Object.fromEntries((spec.params ?? []).filter(driven).map((parameter) => [parameter.name, parameter.value]));
    return { place: document.getElementById(`view-${name}`), spec, now };
  });
  for (const screen of [dark, narrow]) screen.addEventListener("change", () => update(true));
  running = true; // what changes while the figures are drawn waits
  for (const figure of figures) await draw(figure);
  running = false;
  root.dataset.drawn = String(figures.filter((figure) => figure.view).length);
  if (again) await update();
})();
