(() => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.createElement("button");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.className = "theme"; button.type = "button"; button.setAttribute("aria-label", "Switch between light and dark");
  button.onclick = () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); };
  dark.addEventListener("change", label); label(); document.body.prepend(button);

  const data = JSON.parse(document.getElementById("data").textContent);
  const chart = document.querySelector("svg.scatter"), told = document.querySelector(".told");
  const TOP = 30, HEIGHT = 260, SVG = "http://www.w3.org/2000/svg";
  const x = document.getElementById("x"), y = document.getElementById("y");
  const number = (v) => v === null || v === undefined ? "–" : Math.abs(v) >= 1e4 ? Math.round(v).toLocaleString("en") : Number(v.toPrecision(4)).toString();

  const light = (n) => {
    document.querySelectorAll(".on").forEach((e) => e.classList.remove("on"));
    if (n === null) return;
    document.querySelectorAll(`[data-trial="${n}"]`).forEach((e) => e.classList.add("on"));
    document.querySelectorAll(`path.t${n}`).forEach((e) => { e.classList.add("on"); e.parentNode.append(e); });
    const row = data.trials[n];
    if (told && row && x) told.textContent = `${n === "-1" ? data.reference : "trial " + n}: ${data.names[y.value]} ${number(row[y.value])}, ${data.names[x.value]} ${number(row[x.value])}`;
  };
  document.querySelectorAll("[data-trial]").forEach((e) => {
    ["mouseenter", "focus"].forEach((kind) => e.addEventListener(kind, () => light(e.dataset.trial)));
    ["mouseleave", "blur"].forEach((kind) => e.addEventListener(kind, () => light(null)));
    e.addEventListener("click", () => { const row = document.querySelector(`tr[data-trial="${e.dataset.trial}"]`); if (row && e.tagName !== "TR") row.scrollIntoView({ block: "center" }); });
  });

  document.querySelectorAll("path.choice").forEach((e) => {
    const n = [...e.classList].find((name) => /^t\d+$/.test(name)).slice(1);
    e.addEventListener("mouseover", () => { if (!e.classList.contains("on")) light(n); });
    e.addEventListener("mouseout", () => light(null));
  });
  // One stop for the tab key; arrows go from mark to mark, from left to right.
  const marks = () => [...chart.querySelectorAll(".trial")].filter((e) => e.style.display !== "none").sort((p, q) => parseFloat(p.getAttribute("cx") ?? p.getAttribute("x")) - parseFloat(q.getAttribute("cx") ?? q.getAttribute("x")));
  const stop = (e) => { chart.querySelectorAll(".trial").forEach((m) => m.setAttribute("tabindex", m === e ? "0" : "-1")); };
  if (chart) {
    stop(chart.querySelector(".winner") || marks()[0]);
    chart.addEventListener("focusin", (event) => stop(event.target.closest(".trial")));
    chart.addEventListener("keydown", (event) => {
      const all = marks(), at = all.indexOf(event.target), move = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (at < 0) return;
      if (event.key === "Enter") event.target.dispatchEvent(new MouseEvent("click"));
      if (move) { event.preventDefault(); all[(at + move + all.length) % all.length].focus(); }
    });
  }

  const ticks = (low, high, wanted) => {
    const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999), found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  };
  const add = (name, attributes, content) => {
    const e = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
    if (content) e.textContent = content;
    chart.prepend(e);
  };
  const redraw = () => {
    const rows = Object.entries(data.trials).filter(([, r]) => Number.isFinite(r[x.value]) && Number.isFinite(r[y.value]));
    const core = rows.filter(([n]) => !chart.querySelector(`.trial[data-trial="${n}"].pruned`));
    const range = (name, share, some) => {
      const values = some.map(([, r]) => r[name]), low = Math.min(...values), high = Math.max(...values);
      const pad = (high - low) * share || Math.abs(high) * share || 1;
      return [low - pad, high + pad];
    };
    if (!rows.length) return;
    const [xl, xh] = range(x.value, 0.04, rows), [yl, yh] = range(y.value, 0.12, core.length > 1 ? core : rows);
    const across = (v) => 100 * (v - xl) / (xh - xl), down = (v) => TOP + HEIGHT * (1 - (Math.min(Math.max(v, yl), yh) - yl) / (yh - yl));
    chart.querySelectorAll(".moving").forEach((e) => e.remove());
    for (const t of ticks(yl, yh, 5)) {
      add("text", { x: 0, y: down(t) + 4, dx: -8, "text-anchor": "end", class: "tick moving" }, number(t));
      add("line", { x1: "0%", x2: "100%", y1: down(t), y2: down(t), class: "grid moving" });
    }
    for (const t of ticks(xl, xh, 6)) add("text", { x: across(t) + "%", y: TOP + HEIGHT + 18, "text-anchor": "middle", class: "tick moving" }, number(t));
    chart.querySelector(".xname").textContent = data.names[x.value];
    chart.querySelector(".yname").textContent = data.names[y.value];
    chart.querySelectorAll(".trial").forEach((e) => {
      const row = data.trials[e.dataset.trial], there = row && Number.isFinite(row[x.value]) && Number.isFinite(row[y.value]);
      e.style.display = there ? "" : "none";
      if (!there) return;
      const round = e.tagName === "circle";
      e.setAttribute(round ? "cx" : "x", across(row[x.value]) + "%");
      e.setAttribute(round ? "cy" : "y", down(row[y.value]));
      const said = `${e.dataset.trial === "-1" ? data.reference : "trial " + e.dataset.trial}: ${data.names[y.value]} ${number(row[y.value])}, ${data.names[x.value]} ${number(row[x.value])}`;
      e.setAttribute("aria-label", said);
      e.querySelector("title").textContent = said;
    });
    chart.setAttribute("aria-label", `${data.names[y.value]} over ${data.names[x.value]}; the table below has the figures`);
    const left = marks();
    if (left.length && !left.some((e) => e.getAttribute("tabindex") === "0")) stop(left[0]);
    // The stair means something between two objectives, or over the trials' numbers.
    const xm = data.modes[x.value], ym = y.value === "trial" ? undefined : data.modes[y.value], line = chart.querySelector(".front.curve");
    line.style.display = xm && ym && x.value !== y.value ? "" : "none";
    if (line.style.display) return;
    const sx = xm === "min" ? 1 : -1, sy = ym === "min" ? 1 : -1, stair = [];
    const good = rows.filter(([n]) => data.feasible.includes(Number(n))).map(([, r]) => [r[x.value], r[y.value]]);
    for (const [a, b] of good.sort((p, q) => sx * (p[0] - q[0]) || sy * (p[1] - q[1]))) {
      if (stair.length && sy * b >= sy * stair.at(-1)[1]) continue;
      if (stair.length) stair.push([a, stair.at(-1)[1]]);
      stair.push([a, b]);
    }
    if (stair.length && x.value === "trial") stair.push([Math.max(...rows.map(([, r]) => r.trial ?? 0)), stair.at(-1)[1]]);
    line.setAttribute("d", stair.map(([a, b], i) => `${i ? "L" : "M"}${10 * across(a)} ${down(b) - TOP}`).join(""));
  };
  if (chart && x) {
    document.querySelector(".pick").hidden = document.querySelector(".keys").hidden = false;
    for (const s of [x, y]) { s.dataset.first = s.value; s.addEventListener("change", redraw); }
  }

  document.querySelectorAll("table.sortable").forEach((table) => {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    const key = (row, i) => { const c = row.cells[i], v = c.dataset.value ?? c.textContent.trim(), n = parseFloat(v); return v === "" || v === "–" ? null : Number.isNaN(n) ? v : n; };
    heads.forEach((head, i) => {
      const b = document.createElement("button"); b.type = "button"; b.append(...head.childNodes); head.append(b);
      b.onclick = () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((h) => h.removeAttribute("aria-sort")); head.setAttribute("aria-sort", up ? "ascending" : "descending");
        [...body.rows].sort((p, q) => { const a = key(p, i), c = key(q, i); if (a === null || c === null) return (a === null) - (c === null); return (a > c ? 1 : a < c ? -1 : 0) * (up ? 1 : -1); }).forEach((r) => body.append(r));
      };
    });
  });
})();
