// Foreign text is only ever set as text (textContent, setAttribute), never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const make = (tag, attributes, ...inside) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    element.append(...inside);
    return element;
  };
  const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  const bytes = (number) => {
    let unit = 0;
    while (number >= 1024 && unit < 4) { number /= 1024; unit += 1; }
    return (unit ? number.toFixed(1) : String(number)) + " " + UNITS[unit];
  };
  const percent = (part, whole) => (whole ? (100 * part / whole).toFixed(1) : "0.0") + " %";

  // Tables: sorted by a click on a title, narrowed by a search.
  const collator = new Intl.Collator(undefined, { numeric: true });
  for (const table of document.querySelectorAll("table.sorts")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    heads.forEach((head, nth) => {
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const keyed = [...body.rows].map((row) => {
          const cell = row.cells[nth];
          return [cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort), row];
        });
        const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);
        keyed.sort((a, b) => down ? order(b[0], a[0]) : order(a[0], b[0]));
        body.append(...keyed.map((pair) => pair[1]));
      });
    });
    if (body.rows.length > 10) {
      const region = table.parentElement;
      const says = make("output", {});
      const search = make("input", { type: "search", "aria-label": "Find in this table", placeholder: "Find in this table" });
      search.addEventListener("input", () => {
        const wanted = search.value.toLowerCase();
        let found = 0;
        for (const row of body.rows) {
          // Cell by cell: what stands side by side is not one text.
          const hit = [...row.cells].some((cell) => cell.textContent.toLowerCase().includes(wanted));
          row.hidden = !hit;
          found += hit ? 1 : 0;
        }
        says.textContent = wanted ? found + " of " + body.rows.length + " rows" : "";
      });
      region.before(make("div", { class: "tools" }, search), says);
    }
  }

  // The flame graph: a tree of buttons.
  const flame = (place, { frames, stacks, causes }) => {
    const root = { name: "all", bytes: 0, below: new Map(), above: null, by: new Map() };
    const grow = (node, amount, cause) => {
      node.bytes += amount;
      node.by.set(cause, (node.by.get(cause) || 0) + amount);
    };
    for (const [path, amount, cause] of stacks) {
      let node = root;
      grow(node, amount, cause);
      for (const frame of path) {
        let next = node.below.get(frame);
        if (!next) node.below.set(frame, next = { name: frames[frame], bytes: 0, below: new Map(), above: node, by: new Map() });
        grow(node = next, amount, cause);
      }
    }
    const mainCause = (node) => [...node.by].reduce((a, b) => b[1] > a[1] ? b : a)[0];
    const largest = (node) => [...node.below.values()].sort((a, b) => b.bytes - a.bytes);
    const graph = make("div", { class: "flame", role: "group", "aria-label": "Flame graph of copies. Arrow keys move, Enter zooms, Escape zooms out." });
    const says = make("output", { "aria-live": "polite" });
    const search = make("input", { type: "search", "aria-label": "Find a function, file or line", placeholder: "Find a function, file or line" });
    const reset = make("button", { type: "button" }, "Zoom out");
    place.replaceChildren(make("div", { class: "tools" }, search, reset), graph, says);
    let focus = root;
    let shown = new Map();
    const tell = (node) => node.name + ": " + bytes(node.bytes) + ", " + percent(node.bytes, root.bytes) + ", mostly " + causes.names[mainCause(node)];
    const draw = () => {
      const NARROWEST = 0.12, ROW = 20, MOST = 4000;
      const elements = [];
      shown = new Map();
      let deepest = 0;
      const put = (node, left, width, depth, above) => {
        if (width < NARROWEST || elements.length >= MOST) return false;
        const button = make("button", { type: "button", tabindex: "-1", "aria-label": tell(node), title: tell(node) }, width > 1.5 ? node.name : "");
        button.style.left = left + "%";
        button.style.width = width + "%";
        button.style.top = depth * ROW + "px";
        button.style.background = causes.colors[mainCause(node)];
        if (above) button.classList.add("above");
        shown.set(button, node);
        node.button = button;
        elements.push(button);
        deepest = Math.max(deepest, depth);
        return true;
      };
      const path = [];
      for (let node = focus.above; node; node = node.above) path.unshift(node);
      path.forEach((node, depth) => put(node, 0, 100, depth, true));
      const waiting = [[focus, 0, 100, path.length]];
      while (waiting.length) {
        const [node, left, width, depth] = waiting.shift();
        if (!put(node, left, width, depth, false)) continue;
        let from = left;
        for (const below of largest(node)) {
          const part = width * below.bytes / node.bytes;
          waiting.push([below, from, part, depth + 1]);
          from += part;
        }
      }
      graph.style.height = (deepest + 1) * ROW + "px";
      graph.replaceChildren(...elements);
      focus.button.tabIndex = 0;
      mark();
    };
    const mark = () => {
      const wanted = search.value.toLowerCase();
      for (const [button, node] of shown) {
        const hit = wanted && node.name.toLowerCase().includes(wanted);
        button.classList.toggle("yes", Boolean(hit));
        button.classList.toggle("no", Boolean(wanted) && !hit);
      }
      if (!wanted) { says.textContent = ""; return; }
      // A match below a match is the same copies.
      let sum = 0;
      const waiting = [root];
      while (waiting.length) {
        const node = waiting.pop();
        if (node !== root && node.name.toLowerCase().includes(wanted)) sum += node.bytes;
        else waiting.push(...node.below.values());
      }
      says.textContent = "Found: " + bytes(sum) + ", " + percent(sum, root.bytes) + " of the copies";
    };
    const zoom = (node) => { focus = node; draw(); focus.button.focus(); };
    graph.addEventListener("click", (event) => { const node = shown.get(event.target); if (node) zoom(node); });
    graph.addEventListener("mouseover", (event) => { const node = shown.get(event.target); if (node) says.textContent = tell(node); });
    graph.addEventListener("focusin", (event) => { const node = shown.get(event.target); if (node) says.textContent = tell(node); });
    graph.addEventListener("keydown", (event) => {
      const node = shown.get(event.target);
      if (!node) return;
      const beside = node.above ? largest(node.above) : [node];
      const at = beside.indexOf(node);
      const to = { ArrowUp: node.above, ArrowDown: largest(node)[0], ArrowLeft: beside[at - 1], ArrowRight: beside[at + 1] }[event.key];
      if (event.key === "Escape") { event.preventDefault(); zoom(root); }
      if (to && to.button && to.button.isConnected) {
        event.preventDefault();
        event.target.tabIndex = -1;
        to.button.tabIndex = 0;
        to.button.focus();
      }
    });
    search.addEventListener("input", mark);
    reset.addEventListener("click", () => zoom(root));
    draw();
  };

  // The map of pages: a row for each process, a column for so many neighbouring pages.
  const map = (place, { processes, causes, page_size: pageSize }) => {
    // All pages that anybody copied, side by side; what nobody copied is left out.
    const edges = [];
    for (const one of processes) {
      let at = 0;
      const runs = [];
      for (let i = 0; i < one.runs.length; i += 3) {
        at += one.runs[i];
        runs.push([at, one.runs[i + 1], one.runs[i + 2]]);
        edges.push([at, at + one.runs[i + 1]]);
        at += one.runs[i + 1];
      }
      one.parsed = runs;
    }
    edges.sort((a, b) => a[0] - b[0]);
    const segments = [];
    for (const [from, to] of edges) {
      const last = segments[segments.length - 1];
      if (last && from <= last.to) last.to = Math.max(last.to, to);
      else segments.push({ from, to, at: 0 });
    }
    let total = 0;
    for (const segment of segments) { segment.at = total; total += segment.to - segment.from; }
    const segmentOf = (page) => {
      let low = 0, high = segments.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (segments[middle].from <= page) low = middle; else high = middle - 1;
      }
      return segments[low];
    };
    const position = (page) => { const segment = segmentOf(page); return segment.at + page - segment.from; };
    const columns = Math.max(1, Math.min(total, 1000));
    const rows = processes.length;
    const height = Math.max(4, Math.min(18, Math.floor(400 / rows)));
    const canvas = make("canvas", {
      width: columns, height: rows * height, tabindex: "0", role: "img",
      "aria-label": "Map of " + total + " pages that were copied, in rows: " + rows + ". Arrow keys move a cursor, whose page is told below.",
    });
    canvas.style.height = rows * height + "px";
    canvas.style.imageRendering = "pixelated";
    const says = make("output", { "aria-live": "polite" });
    place.replaceChildren(make("div", { class: "map" }, canvas), says);
    const grid = new Uint8Array(rows * columns);
    const amounts = new Float64Array(columns * causes.names.length);
    const context = canvas.getContext("2d");
    processes.forEach((one, row) => {
      amounts.fill(0);
      for (const [start, count, cause] of one.parsed) {
        const from = position(start) * columns / total, to = from + count * columns / total;
        for (let column = Math.floor(from); column < to && column < columns; column += 1) {
          amounts[column * causes.names.length + cause] += Math.min(to, column + 1) - Math.max(from, column);
        }
      }
      for (let column = 0; column < columns; column += 1) {
        let best = -1, most = 0;
        for (let cause = 0; cause < causes.names.length; cause += 1) {
          const amount = amounts[column * causes.names.length + cause];
          if (amount > most) { most = amount; best = cause; }
        }
        grid[row * columns + column] = best + 1;
        if (best >= 0) {
          context.fillStyle = causes.colors[best];
          context.fillRect(column, row * height, 1, height - (height > 5 ? 1 : 0));
        }
      }
    });
    let cursor = [0, 0];
    const tell = ([row, column]) => {
      const first = Math.floor(column * total / columns);
      const segment = segments.findLast((one) => one.at <= first);
      const page = (segment.from + first - segment.at) * pageSize;
      const cause = grid[row * columns + column];
      const what = cause ? "copied, mostly " + causes.names[cause - 1] : "not copied";
      says.textContent = processes[row].name + ", pages from 0x" + page.toString(16) + ": " + what;
    };
    canvas.addEventListener("mousemove", (event) => {
      const box = canvas.getBoundingClientRect();
      const inside = (part, of) => Math.max(0, Math.min(of - 1, Math.floor(part * of)));
      cursor = [inside((event.clientY - box.top) / box.height, rows), inside((event.clientX - box.left) / box.width, columns)];
      tell(cursor);
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      cursor = [Math.max(0, Math.min(rows - 1, cursor[0] + step[0])), Math.max(0, Math.min(columns - 1, cursor[1] + step[1]))];
      tell(cursor);
    });
    const per = total / columns;
    place.prepend(make("p", { class: "quiet" }, total + " pages that somebody copied, side by side; a row for each process, and for each time between two forks of one: " + rows +
      (per > 1 ? "; a column is " + per.toFixed(1) + " pages, in the colour of most copies in it" : "")));
  };

  // Memory over time: shared, copied and new, one above the other; each value holds until the next.
  const LAYERS = [["new", "#ffe066"], ["copied", "#f28482"], ["shared", "#8ecae6"]];
  const time = (place, { processes, page_size: pageSize }) => {
    const WIDTH = 1000, HEIGHT = 240;
    // By four: microseconds, pages shared, copied, new.
    const steps = (flat) => {
      const all = [];
      for (let i = 0; i < flat.length; i += 4) all.push({ at: flat[i], shared: flat[i + 1], copied: flat[i + 2], new: flat[i + 3] });
      return all;
    };
    // A process that has ended has nothing any more.
    const together = () => {
      const changes = [];
      for (const one of processes) {
        let before = { shared: 0, copied: 0, new: 0 };
        const all = steps(one.points), last = all[all.length - 1];
        for (const now of [...all, { at: last.at, shared: 0, copied: 0, new: 0 }]) {
          changes.push({ at: now.at, shared: now.shared - before.shared, copied: now.copied - before.copied, new: now.new - before.new });
          before = now;
        }
      }
      changes.sort((a, b) => a.at - b.at);
      const sums = [], now = { shared: 0, copied: 0, new: 0 };
      changes.forEach((change) => {
        // At the very end all are let go at once: what they had then is the last that is shown.
        const isLast = change.at === changes[changes.length - 1].at;
        if (isLast && change.shared + change.copied + change.new < 0) return;
        for (const [name] of LAYERS) now[name] += change[name];
        if (sums.length && sums[sums.length - 1].at === change.at) sums.pop();
        sums.push({ at: change.at, ...now });
      });
      return sums;
    };
    const svg = (tag, attributes, ...inside) => {
      const element = document.createElementNS("http" + "://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      element.append(...inside);
      return element;
    };
    const choice = make("select", { "aria-label": "Whose memory" }, make("option", { value: "" }, "All together"));
    processes.forEach((one, nth) => choice.append(make("option", { value: nth }, one.name)));
    const says = make("output", { "aria-live": "polite" });
    const top = make("span", { class: "quiet" }), end = make("span", {}), begin = make("span", {});
    const cursor = svg("line", { y1: 0, y2: HEIGHT, class: "cursor", visibility: "hidden" });
    const layers = LAYERS.map(([, fill]) => svg("path", { fill }));
    const chart = svg("svg", { viewBox: "0 0 " + WIDTH + " " + HEIGHT, preserveAspectRatio: "none", tabindex: "0", role: "img" }, ...layers, cursor);
    chart.style.height = HEIGHT + "px";
    place.replaceChildren(make("div", { class: "tools" }, choice), top, make("div", { class: "time" }, chart),
      make("div", { class: "ends quiet" }, begin, end), says);
    let shown = [], first = 0, last = 1, at = 0;
    const left = (time) => WIDTH * (time - first) / (last - first);
    const draw = () => {
      shown = choice.value === "" ? together() : steps(processes[Number(choice.value)].points);
      first = shown[0].at;
      last = Math.max(first + 1, shown[shown.length - 1].at);
      const most = shown.reduce((most, one) => Math.max(most, one.shared + one.copied + one.new), 1);
      const base = new Float64Array(shown.length);
      LAYERS.forEach(([name], layer) => {
        const upper = [], lower = [];
        shown.forEach((one, nth) => {
          const from = left(one.at).toFixed(1), to = left(nth + 1 < shown.length ? shown[nth + 1].at : last).toFixed(1);
          const y = (pages) => (HEIGHT * (1 - pages / most)).toFixed(1);
          lower.push([from, y(base[nth])], [to, y(base[nth])]);
          base[nth] += one[name];
          upper.push([from, y(base[nth])], [to, y(base[nth])]);
        });
        layers[layer].setAttribute("d", "M" + [...upper, ...lower.reverse()].map((point) => point.join(" ")).join("L") + "Z");
      });
      top.textContent = bytes(most * pageSize);
      begin.textContent = (first / 1e6).toFixed(3) + " s";
      end.textContent = (last / 1e6).toFixed(3) + " s";
      chart.setAttribute("aria-label", "Memory over time of " + choice.selectedOptions[0].textContent + ", at most " + bytes(most * pageSize) +
        ". Arrow keys move through time, what is there is told below.");
      cursor.setAttribute("visibility", "hidden");
      says.textContent = "";
      at = 0;
    };
    const tell = () => {
      const one = shown[at];
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, left(one.at));
      cursor.setAttribute("visibility", "visible");
      says.textContent = (one.at / 1e6).toFixed(3) + " s: " + LAYERS.map(([name]) => name + " " + bytes(one[name] * pageSize)).reverse().join(", ");
    };
    chart.addEventListener("mousemove", (event) => {
      const box = chart.getBoundingClientRect();
      const wanted = first + (last - first) * (event.clientX - box.left) / box.width;
      at = Math.max(0, shown.findLastIndex((one) => one.at <= wanted));
      tell();
    });
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -shown.length, End: shown.length }[event.key];
      if (!step) return;
      event.preventDefault();
      at = Math.max(0, Math.min(shown.length - 1, at + step));
      tell();
    });
    choice.addEventListener("change", draw);
    draw();
  };

  const legend = (place, says, { names, colors }, used) => {
    const list = make("ul", { class: "legend", "aria-label": says });
    names.forEach((name, cause) => {
      if (!used.has(cause)) return;
      const patch = make("span", { "aria-hidden": "true" });
      patch.style.background = colors[cause];
      list.append(make("li", {}, patch, name));
    });
    place.append(list);
  };

  // What is above is read first: the pictures come when it has been painted.
  const later = (work) => requestAnimationFrame(() => setTimeout(work, 0));
  later(() => {
    const places = { flame: document.getElementById("flame"), map: document.getElementById("map"), time: document.getElementById("time") };
    if (places.time && data.time) {
      time(places.time, data.time);
      const layers = { names: LAYERS.map((layer) => layer[0]), colors: LAYERS.map((layer) => layer[1]) };
      legend(places.time, "Colours", layers, new Set([0, 1, 2]));
    }
    if (places.flame && data.flame) {
      flame(places.flame, data.flame);
      legend(places.flame, "Colours by likely cause", data.flame.causes, new Set(data.flame.stacks.map((stack) => stack[2])));
    }
    if (places.map && data.map) {
      map(places.map, data.map);
      const used = new Set();
      for (const one of data.map.processes) for (const run of one.parsed) used.add(run[2]);
      legend(places.map, "Colours by likely cause", data.map.causes, used);
    }
    document.documentElement.dataset.ready = Math.round(performance.now());
  });
})();
