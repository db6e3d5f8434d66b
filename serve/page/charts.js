// Charts as SVG elements. Positions across are in percent, so a chart follows the page's width while its text keeps
// the reader's size; curves sit in a nested <svg> that stretches, with strokes that do not.

const SPACE = "http://www.w3.org/2000/svg";
const WIDTH = 1000;

export function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function frame(height, label, ...children) {
  return element("svg", { height, role: "img", "aria-label": label }, ...children);
}

function text(content, x, y, anchor = "middle", className = "") {
  return element("text", { x, y, "text-anchor": anchor, class: className }, content);
}

function curve(top, height, points) {
  const data = points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  return element(
    "svg",
    { x: 0, y: top, width: "100%", height, viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none" },
    element("path", { d: data, class: "curve", "vector-effect": "non-scaling-stroke" }),
  );
}

export function ticks(high, wanted = 5) {
  const raw = high / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, index) => index * step);
}

function axis(high, y, unit) {
  const found = ticks(high);
  const decimals = Math.max(0, -Math.floor(Math.log10(found[1] ?? 1) + 1e-9));
  return found.map((value, index) => {
    const near = value > 0.95 * high;
    const words = value.toFixed(decimals) + (index === found.length - 1 ? ` ${unit}` : "");
    return text(words, `${(100 * value) / high}%`, y, index === 0 ? "start" : near ? "end" : "middle");
  });
}

export function waveform(samples, secondsPerSample) {
  const top = 6, height = 120;
  const peak = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
  const last = Math.max(1, samples.length - 1);
  const points = samples.map((value, index) => [(WIDTH * index) / last, (height / 2) * (1 - (0.95 * value) / peak)]);
  const milliseconds = 1000 * secondsPerSample * samples.length;
  return frame(
    top + height + 22,
    `Vibration over the first ${milliseconds.toFixed(0)} milliseconds`,
    element("line", { x1: "0%", x2: "100%", y1: top + height / 2, y2: top + height / 2, class: "axis" }),
    curve(top, height, points),
    ...axis(milliseconds, top + height + 18, "ms"),
  );
}

export function spectrum(hz, amplitude, lines, strongest) {
  const limit = hz[hz.length - 1] || 1;
  const rows = placed(lines, limit);
  const top = 12 + 16 * rows.count, height = 160;
  const peak = amplitude.reduce((most, value) => Math.max(most, value), 0) || 1;
  const points = hz.map((value, index) => [(WIDTH * value) / limit, height * (1 - (0.96 * amplitude[index]) / peak)]);
  const named = lines.map((line) => `${line.name} at ${line.hz.toFixed(1)} hertz`).join(", ");
  return frame(
    top + height + 22,
    `Envelope spectrum to ${limit.toFixed(0)} hertz. ${named ? `Marked: ${named}.` : "Nothing is marked."}`,
    ...rows.lines.flatMap(([line, row]) => mark(line, row, limit, top + height, line.name === strongest)),
    curve(top, height, points),
    element("line", { x1: "0%", x2: "100%", y1: top + height, y2: top + height, class: "axis" }),
    ...axis(limit, top + height + 18, "Hz"),
  );
}

// Each label gets a row of its own where neighbours would overlap on a narrow screen.
function placed(lines, limit) {
  const ends = [];
  const found = [...lines].sort((a, b) => a.hz - b.hz).filter((line) => line.hz <= limit).map((line) => {
    let row = ends.findIndex((end) => line.hz - end >= 0.2 * limit);
    if (row < 0) row = ends.length;
    ends[row] = line.hz;
    return [line, row];
  });
  return { count: ends.length, lines: found };
}

function mark(line, row, limit, bottom, strongest) {
  const at = (100 * line.hz) / limit;
  const y = 12 + 16 * row;
  const anchor = at < 8 ? "start" : at > 92 ? "end" : "middle";
  const parts = [
    element("line", { x1: `${at}%`, x2: `${at}%`, y1: y + 4, y2: bottom, class: strongest ? "mark strongest" : "mark" }),
    text(line.name, `${at}%`, y, anchor, strongest ? "strong" : ""),
  ];
  for (const harmonic of strongest ? [2, 3] : []) {
    const place = at * harmonic;
    if (place > 100) continue;
    parts.push(element("line", { x1: `${place}%`, x2: `${place}%`, y1: y + 4, y2: bottom, class: "mark harmonic" }));
    parts.push(text(`${harmonic}×`, `${place}%`, y, place > 95 ? "end" : "middle", "strong"));
  }
  return parts;
}

export function bar(share) {
  const width = `${(100 * share).toFixed(1)}%`;
  return element(
    "svg",
    { "aria-hidden": "true" },
    element("rect", { x: 0, y: 0, width: "100%", height: "100%", rx: 3, class: "track" }),
    element("rect", { x: 0, y: 0, width, height: "100%", rx: 3, class: "fill" }),
  );
}
