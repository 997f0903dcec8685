"use strict";
// Draws the map of errors and answers for its cells. Whatever comes from a trace becomes text, never markup.
(() => {
  const holder = document.getElementById("map-data");
  if (!holder) return;
  const failed = () => {
    document.getElementById("map-view").hidden = true;
    document.getElementById("map-fallback").hidden = false;
  };
  if (typeof DecompressionStream === "undefined") { failed(); return; }
  const data = JSON.parse(holder.textContent);
  const [UNSEEN, SAME, LEAST, WITHIN, BEYOND, MOST, INFINITE] = [0, 1, 2, 128, 129, 254, 255];
  const DECADES = 5;
  const at = (id) => document.getElementById(id);
  const field = at("map-field"), canvas = at("map-cells"), names = at("map-names"), tip = at("map-tip");
  const rows = data.sites.length, columns = data.columns;
  let view = "operators", chosen = [0, 0], size = [1, 1], colours = [], pictures = {}, opened = false;
  const unpacked = {};

  async function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  async function unpack(name) {
    const map = data.maps[name];
    const cells = new Uint8Array(await inflate(map.cells));
    const kind = map.bytes === 1 ? Uint8Array : Uint32Array;
    return { cells, places: map.places ? new kind(await inflate(map.places)) : null };
  }

  // -- what a cell is ---------------------------------------------------------------------------------------

  const level = (column, site) => unpacked[view].cells[site * columns + column];

  function place(column, site) {
    const within = unpacked[view].places;
    return column * data.width + (within ? within[site * columns + column] : 0);
  }

  function lastUpTo(list, value, of) {
    let low = 0, high = list.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (of(list[middle]) <= value) low = middle; else high = middle - 1;
    }
    return list[low];
  }

  function rowOf(where) {
    const [request, sequence, position, start] = lastUpTo(data.runs, where, (run) => run[3]);
    return [request, sequence, position + where - start];
  }

  function placeOf(row) {
    for (let n = 0; n < data.runs.length; n += 1) {
      const [request, sequence, position, start] = data.runs[n];
      const end = n + 1 < data.runs.length ? data.runs[n + 1][3] : data.rows;
      const where = start + row[2] - position;
      if (request === row[0] && sequence === row[1] && where >= start && where < end) return where;
    }
    return -1;
  }

  function stepOf(side, where) {
    if (!data.steps) return -1;
    const [start, step, by] = lastUpTo(data.steps[side], where, (run) => run[0]);
    return step + by * (where - start);
  }

  // As the tables say it: in percent, or as a multiple.
  function share(ratio) {
    if (ratio >= 10) return `${Number(ratio.toPrecision(2)).toLocaleString("en")} times`;
    return `${Number((100 * ratio).toPrecision(2))}% of`;
  }

  function words(value) {
    if (value === UNSEEN) return "not compared";
    if (value === SAME) return "identical: the same bits";
    if (value === INFINITE) return "not finite on one side, or another integer";
    const beyond = value >= BEYOND;
    const decades = beyond ? (value - BEYOND) / (MOST - BEYOND) : (value - LEAST) / (WITHIN - LEAST) - 1;
    const ratio = 10 ** (decades * DECADES);
    const error = value === LEAST ? "nearly nothing" : `about ${share(ratio)} the allowed error`;
    return beyond ? `out of tolerance: ${error}` : `within tolerance: ${error}`;
  }

  function rowWords(where) {
    const [request, sequence, position] = rowOf(where);
    return `request ${request}${sequence ? `, sequence ${sequence}` : ""}, position ${position}`;
  }

  // -- drawing ----------------------------------------------------------------------------------------------

  function parse(name) {
    const text = getComputedStyle(document.documentElement).getPropertyValue(`--cell-${name}`).trim();
    return [1, 3, 5].map((n) => parseInt(text.slice(n, n + 2), 16));
  }

  function palette() {
    pictures = {};
    const mix = (a, b, share) => a.map((v, n) => Math.round(v + (b[n] - v) * share));
    const [low, high, above, top] = ["within-a", "within-b", "beyond-a", "beyond-b"].map(parse);
    colours = Array.from({ length: 256 }, (_, value) => {
      if (value === UNSEEN) return parse("unseen");
      if (value === SAME) return parse("same");
      if (value === INFINITE) return parse("infinite");
      // Four decades below the allowance are as pale as it gets; three above it are as dark.
      if (value >= BEYOND) return mix(above, top, Math.min(1, ((value - BEYOND) / (MOST - BEYOND)) * 5 / 3));
      return mix(low, high, Math.max(0, 1 - ((WITHIN - value) / (WITHIN - LEAST)) * 5 / 4));
    });
  }

  function fit() {
    const room = Math.max(200, field.parentElement.clientWidth - 8);
    size = [Math.max(1, Math.min(14, Math.floor(room / columns))), Math.max(3, Math.min(16, Math.floor(720 / rows)))];
  }

  function prepare(target, width, height) {
    const scale = window.devicePixelRatio || 1;
    target.width = Math.round(width * scale);
    target.height = Math.round(height * scale);
    target.style.width = `${width}px`;
    target.style.height = `${height}px`;
    const context = target.getContext("2d");
    context.scale(scale, scale);
    return context;
  }

  // One pixel a cell, made once for a view and a palette.
  function picture() {
    const { cells } = unpacked[view];
    const image = new ImageData(columns, rows);
    for (let n = 0; n < cells.length; n += 1) {
      const [r, g, b] = colours[cells[n]];
      [image.data[4 * n], image.data[4 * n + 1], image.data[4 * n + 2], image.data[4 * n + 3]] = [r, g, b, 255];
    }
    const found = document.createElement("canvas");
    [found.width, found.height] = [columns, rows];
    found.getContext("2d").putImageData(image, 0, 0);
    return found;
  }

  function draw() {
    if (!pictures[view]) pictures[view] = picture();
    const [w, h] = size, small = pictures[view];
    const context = prepare(canvas, columns * w, rows * h);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, columns * w, rows * h);
    const style = getComputedStyle(document.documentElement);
    context.strokeStyle = style.getPropertyValue("--dim");
    for (const run of data.runs.slice(1)) {
      const x = Math.floor(run[3] / data.width) * w;
      context.globalAlpha = 0.5;
      context.fillStyle = style.getPropertyValue("--dim");
      if (data.runs.length < columns / 4) context.fillRect(x, 0, 1, rows * h);
    }
    context.globalAlpha = 1;
    context.lineWidth = 2;
    context.strokeStyle = style.getPropertyValue("--text");
    const [left, top] = [Math.max(1, chosen[0] * w - 2), Math.max(1, chosen[1] * h - 2)];
    const right = Math.min(columns * w - 1, (chosen[0] + 1) * w + 2);
    const under = Math.min(rows * h - 1, (chosen[1] + 1) * h + 2);
    context.strokeRect(left, top, right - left, under - top);
    if (Math.min(w, h) < 6) {
      // A cell this small is found by lines that meet in it.
      context.fillStyle = style.getPropertyValue("--text");
      for (const [x, y, wide, tall] of [[0, (chosen[1] + 0.5) * h, columns * w, 1], [(chosen[0] + 0.5) * w, 0, 1, rows * h]]) {
        context.globalAlpha = 0.55;
        context.fillRect(Math.floor(x), Math.floor(y), wide, tall);
      }
      context.globalAlpha = 1;
    }
    drawNames(style);
  }

  function drawNames(style) {
    const labels = labelled();
    const context = prepare(names, 210, rows * size[1]);
    context.font = "11px ui-monospace, Menlo, Consolas, monospace";
    context.textBaseline = "middle";
    context.textAlign = "right";
    const selected = chosen[1];
    for (const n of labels) {
      context.fillStyle = style.getPropertyValue(n === selected ? "--text" : "--dim");
      context.fillText(shortened(data.sites[n].name, 30), 204, middle(n));
    }
  }

  // Where a row's name stands: it does not hang over the edge.
  const middle = (n) => Math.min(Math.max((n + 0.5) * size[1], 6), rows * size[1] - 6);

  // The rows that have a name: the chosen one, the first of each layer, others where there is room.
  function labelled() {
    const found = [chosen[1]], free = (n) => found.every((other) => Math.abs(middle(other) - middle(n)) >= 12);
    const layer = (n) => (data.sites[n].name.match(/^.*?\.\d+(?=\.)/) || [""])[0];
    for (let n = 0; n < rows; n += 1) if ((!n || layer(n) !== layer(n - 1)) && free(n)) found.push(n);
    for (let n = 0; n < rows; n += 1) if (free(n)) found.push(n);
    return found;
  }

  // What repeats is left out: the path before a layer's number, or else the beginning.
  const long = data.sites.some((site) => site.name.length > 30);
  function shortened(name, most) {
    const short = long ? name.replace(/^.*?\.(?=\d+\.)/, "…") : name;
    return short.length <= most ? short : `…${short.slice(1 - most)}`;
  }

  // -- one cell ---------------------------------------------------------------------------------------------

  function entry(list, name, value) {
    const line = document.createElement("div");
    const term = document.createElement("dt"), what = document.createElement("dd");
    term.textContent = name;
    what.textContent = value;
    line.append(term, what);
    list.append(line);
  }

  function command(side, site, where) {
    const { begin, pass } = data.show[side], step = stepOf(side, where);
    const which = step < 0 ? "" : ` --step ${step}`;
    return `${begin} ${site.quoted[side]}${pass}${which} --request ${rowOf(where)[0]}`;
  }

  function hashOf(column, site) {
    return `#cell/${view}/${encodeURIComponent(data.sites[site].name)}/${rowOf(place(column, site)).join(".")}`;
  }

  function tell() {
    const [column, n] = chosen, site = data.sites[n], where = place(column, n);
    const steps = [stepOf(0, where), stepOf(1, where)].map((step) => (step < 0 ? "none" : step));
    const found = words(level(column, n));
    at("call").hidden = !opened;
    at("call-title").textContent = site.name;
    const facts = at("call-facts");
    facts.replaceChildren();
    entry(facts, "operator", site.operator);
    entry(facts, "row", `${rowWords(where)}; step ${steps[0]} in golden, ${steps[1]} in the candidate`);
    entry(facts, view === "edges" ? "what arrives here" : "this call's error", found);
    const all = site[view];
    if (all) entry(facts, "class over all rows", `${all.class} (${all.rows} rows)`);
    if (all) entry(facts, "error over all rows", all.words);
    const inputs = at("call-inputs");
    inputs.replaceChildren();
    for (const [index, golden, candidate, count] of site.inputs) {
      const same = golden === candidate ? "the same" : "differ";
      entry(inputs, `input ${index}, ${count === 1 ? "1 row" : `${count} rows`}`, `golden ${golden}, candidate ${candidate}: ${same}`);
    }
    if (!site.inputs.length) entry(inputs, "inputs", "none that both sides have");
    at("call-golden").textContent = command(0, site, where);
    at("call-candidate").textContent = command(1, site, where);
    at("call-link").setAttribute("href", hashOf(column, n));
    at("map-words").textContent = `${site.name}, ${rowWords(where)}: ${found}`;
  }

  function choose(column, site, { open = true, fix = false } = {}) {
    chosen = [Math.min(Math.max(column, 0), columns - 1), Math.min(Math.max(site, 0), rows - 1)];
    opened = opened || open;
    draw();
    tell();
    const scroll = field.parentElement, x = chosen[0] * size[0];
    if (x < scroll.scrollLeft || x > scroll.scrollLeft + scroll.clientWidth - 20) scroll.scrollLeft = x - 80;
    if (fix && location.hash !== hashOf(...chosen)) location.hash = hashOf(...chosen);
  }

  function show(name) {
    if (!(name in unpacked)) return;
    view = name;
    for (const input of document.getElementsByName("view")) input.checked = input.value === name;
  }

  function fromAddress() {
    const [kind, name, site, row] = location.hash.slice(1).split("/");
    if (kind === "map" && name) {
      show(name);
      draw();
      at("map").scrollIntoView();
    }
    if (kind !== "cell" || !site || !row) return false;
    let wanted;
    try { wanted = decodeURIComponent(site); } catch { return false; }
    const n = data.sites.findIndex((one) => one.name === wanted), where = placeOf(row.split(".").map(Number));
    if (n < 0 || where < 0) return false;
    show(name);
    choose(Math.floor(where / data.width), n);
    at("map").scrollIntoView();
    return true;
  }

  // -- what a reader does -----------------------------------------------------------------------------------

  function under(event) {
    const box = canvas.getBoundingClientRect();
    const cell = [(event.clientX - box.left) / size[0], (event.clientY - box.top) / size[1]].map(Math.floor);
    return cell[0] >= 0 && cell[1] >= 0 && cell[0] < columns && cell[1] < rows ? cell : null;
  }

  canvas.addEventListener("pointermove", (event) => {
    const cell = under(event);
    tip.hidden = !cell;
    if (!cell) return;
    tip.textContent = `${data.sites[cell[1]].name}, ${rowWords(place(...cell))}: ${words(level(...cell))}`;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 8)}px`;
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("click", (event) => {
    const cell = under(event);
    if (cell) choose(...cell, { fix: true });
  });

  const moves = {
    ArrowLeft: ([x, y]) => [x - 1, y], ArrowRight: ([x, y]) => [x + 1, y], ArrowUp: ([x, y]) => [x, y - 1],
    ArrowDown: ([x, y]) => [x, y + 1], PageUp: ([x, y]) => [x, y - 10], PageDown: ([x, y]) => [x, y + 10],
    Home: ([, y]) => [0, y], End: ([, y]) => [columns - 1, y], Enter: (cell) => cell, " ": (cell) => cell,
  };
  field.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    choose(...move(chosen), { fix: event.key === "Enter" || event.key === " " });
  });

  function worst() {
    const { cells } = unpacked[view];
    const most = cells.indexOf(data.maps[view].worst);
    return [most % columns, Math.floor(most / columns)];
  }

  function firstDivergence() {
    const [name, site, ...row] = data.first;
    show(name);
    return [Math.floor(Math.max(0, placeOf(row)) / data.width), site];
  }

  for (const button of document.querySelectorAll("[data-go]")) {
    button.addEventListener("click", () => {
      choose(...(button.dataset.go === "first" ? firstDivergence() : worst()), { fix: true });
    });
  }
  for (const button of document.querySelectorAll("[data-move]")) {
    const [x, y] = button.dataset.move.split(" ").map(Number);
    button.addEventListener("click", () => choose(chosen[0] + x, chosen[1] + y));
  }
  for (const input of document.getElementsByName("view")) {
    input.addEventListener("change", () => {
      show(input.value);
      if (opened) choose(...chosen, { fix: true });
      else { draw(); location.hash = `#map/${view}`; }
    });
  }

  function redraw() {
    palette();
    fit();
    draw();
  }

  (async () => {
    for (const name of Object.keys(data.maps)) unpacked[name] = await unpack(name);
    at("map-view").hidden = false;
    if (data.first) chosen = firstDivergence();
    redraw();
    if (!fromAddress()) choose(...chosen, { open: data.first !== null });
    window.addEventListener("resize", redraw);
    window.addEventListener("hashchange", fromAddress);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    document.documentElement.dataset.ready = "yes";
  })().catch((error) => {
    failed();
    throw error;
  });
})();
